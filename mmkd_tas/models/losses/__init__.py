from .accuracy import LogitAccuracy
from .hcd_loss import HCDLoss
from .info_nce_loss import InfoNCELoss
from .ofa_loss import OFALoss
from .rsd_loss import RSDLoss

__all__ = ['HCDLoss', 'InfoNCELoss', 'LogitAccuracy', 'OFALoss', 'RSDLoss']
