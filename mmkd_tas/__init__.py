"""Cross-architecture knowledge distillation for MMRazor and MMPretrain.

Importing this package patches the released OpenMMLab packages as far as they could not be
imported on a current PyTorch otherwise; the rest of :mod:`mmkd_tas.compat` waits for a run.
Everything else registers itself when a config names it
(``type='mmkd_tas.CrossArchDistill'``); :func:`distil` is for training loops of
one's own, :class:`Classifier` for models of other libraries.
"""

from typing import Any

from . import packages
from .version import __version__

packages.check()

from . import compat  # noqa: E402  (which needs them)

compat.apply(['imports'])

__all__ = ['Classifier', '__version__', 'distil']


def __getattr__(name: str) -> Any:
    # What they need takes a second to import, and not every process needs it.
    if name == 'distil':
        from .loop import distil

        return distil
    if name == 'Classifier':
        from .models import Classifier

        return Classifier
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
