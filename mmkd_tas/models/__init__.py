from .algorithms import CrossArchDistill
from .connectors import ExitBranch, HybridAssistant, PairProjector, StageConnector
from .distillers import StageDistiller
from .losses import InfoNCELoss, LogitAccuracy, OFALoss

__all__ = [
    'CrossArchDistill',
    'ExitBranch',
    'HybridAssistant',
    'InfoNCELoss',
    'LogitAccuracy',
    'OFALoss',
    'PairProjector',
    'StageConnector',
    'StageDistiller',
]
