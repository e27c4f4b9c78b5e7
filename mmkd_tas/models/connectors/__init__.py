from .base import StageConnector
from .complementary_mapper import ComplementaryFeatureMapper
from .decoupler import Decoupler
from .exit_branch import ExitBranch
from .hybrid_assistant import HybridAssistant
from .pair_projector import PairProjector
from .stage_regressor import StageRegressor

__all__ = [
    'ComplementaryFeatureMapper',
    'Decoupler',
    'ExitBranch',
    'HybridAssistant',
    'PairProjector',
    'StageConnector',
    'StageRegressor',
]
