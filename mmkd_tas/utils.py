"""The function that mmengine's hub and openmim ask of every package."""

import importlib

from mmengine.registry import init_default_scope as set_default_scope


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register everything of this package; by default make mmpretrain's the default scope.

    Configs need no call: ``type='mmkd_tas.X'`` registers what it names.
    """
    for module in ('datasets', 'hooks', 'models', 'stages'):
        importlib.import_module(f'mmkd_tas.{module}')
    if init_default_scope:
        set_default_scope('mmpretrain')
