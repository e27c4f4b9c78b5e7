from .epoch_seed_hook import EpochSeedHook
from .finite_loss_hook import FiniteLossHook
from .preflight_hook import PreflightHook
from .progress_hook import ProgressHook

__all__ = ['EpochSeedHook', 'FiniteLossHook', 'PreflightHook', 'ProgressHook']
