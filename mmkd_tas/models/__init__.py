from .algorithms import CrossArchDistill
from .batch_augments import MixThenErase
from .classifier import Classifier
from .connectors import (
    ComplementaryFeatureMapper,
    Decoupler,
    ExitBranch,
    HybridAssistant,
    PairProjector,
    PromptedTeacher,
    RegionAttention,
    StageConnector,
    StageRegressor,
)
from .distillers import StageDistiller
from .losses import (
    CCLoss,
    CRDLoss,
    DKDLoss,
    HCDLoss,
    HierarchicalContextLoss,
    HintLoss,
    InfoNCELoss,
    LogitAccuracy,
    OFALoss,
    RKDLoss,
    RSDLoss,
)

__all__ = [
    'CCLoss',
    'CRDLoss',
    'Classifier',
    'ComplementaryFeatureMapper',
    'CrossArchDistill',
    'DKDLoss',
    'Decoupler',
    'ExitBranch',
    'HCDLoss',
    'HierarchicalContextLoss',
    'HintLoss',
    'HybridAssistant',
    'InfoNCELoss',
    'LogitAccuracy',
    'MixThenErase',
    'OFALoss',
    'PairProjector',
    'PromptedTeacher',
    'RKDLoss',
    'RSDLoss',
    'RegionAttention',
    'StageConnector',
    'StageDistiller',
    'StageRegressor',
]
