from .accuracy import LogitAccuracy
from .crd_loss import CRDLoss
from .dkd_loss import DKDLoss
from .hcd_loss import HCDLoss
from .hint_loss import HierarchicalContextLoss, HintLoss
from .info_nce_loss import InfoNCELoss
from .ofa_loss import OFALoss
from .relation_losses import CCLoss, RKDLoss
from .rsd_loss import RSDLoss

__all__ = [
    'CCLoss',
    'CRDLoss',
    'DKDLoss',
    'HCDLoss',
    'HierarchicalContextLoss',
    'HintLoss',
    'InfoNCELoss',
    'LogitAccuracy',
    'OFALoss',
    'RKDLoss',
    'RSDLoss',
]
