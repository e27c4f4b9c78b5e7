from .epoch_seed_hook import EpochSeedHook
from .preflight_hook import PreflightHook

__all__ = ['EpochSeedHook', 'PreflightHook']
