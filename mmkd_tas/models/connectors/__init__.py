from .base import StageConnector
from .complementary_mapper import ComplementaryFeatureMapper
from .decoupler import Decoupler
from .exit_branch import ExitBranch
from .hybrid_assistant import HybridAssistant
from .pair_projector import PairProjector
from .prompted_teacher import PromptedTeacher
from .region_attention import RegionAttention
from .stage_regressor import StageRegressor

__all__ = [
    'ComplementaryFeatureMapper',
    'Decoupler',
    'ExitBranch',
    'HybridAssistant',
    'PairProjector',
    'PromptedTeacher',
    'RegionAttention',
    'StageConnector',
    'StageRegressor',
]
