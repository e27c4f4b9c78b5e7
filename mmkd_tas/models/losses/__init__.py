from .accuracy import LogitAccuracy
from .info_nce_loss import InfoNCELoss
from .ofa_loss import OFALoss

__all__ = ['InfoNCELoss', 'LogitAccuracy', 'OFALoss']
