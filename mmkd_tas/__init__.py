"""Cross-architecture knowledge distillation for MMRazor and MMPretrain.

Importing this package mends the released OpenMMLab packages in place, so that
they work on a current PyTorch; :func:`mmkd_tas.compat.applied` lists what was
mended. Everything else registers itself when a config names it
(``type='mmkd_tas.CrossArchDistill'``).
"""

from . import compat
from .version import __version__

compat.apply()

__all__ = ['__version__']
