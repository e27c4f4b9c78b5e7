from .algorithms import CrossArchDistill
from .connectors import (
    ComplementaryFeatureMapper,
    Decoupler,
    ExitBranch,
    HybridAssistant,
    PairProjector,
    StageConnector,
)
from .distillers import StageDistiller
from .losses import HCDLoss, InfoNCELoss, LogitAccuracy, OFALoss, RSDLoss

__all__ = [
    'ComplementaryFeatureMapper',
    'CrossArchDistill',
    'Decoupler',
    'ExitBranch',
    'HCDLoss',
    'HybridAssistant',
    'InfoNCELoss',
    'LogitAccuracy',
    'OFALoss',
    'PairProjector',
    'RSDLoss',
    'StageConnector',
    'StageDistiller',
]
