"""Trainings in several processes."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint as activations
from mmengine.device import get_device
from mmengine.dist import utils
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.optim import ZeroRedundancyOptimizer
from mmengine.runner import Runner
from timm.layers import BatchNormAct2d
from timm.layers import convert_sync_batchnorm as convert_with_activation
from torch import nn

from . import around, patch, replace, source


@patch(lambda: get_device() == 'cpu' and 'torch.cuda.set' in source(utils._init_dist_pytorch))
def cpu_distributed() -> None:
    """mmengine 0.10.7, dist/utils.py:94: several processes train on CPUs, too (gloo)."""

    def with_gloo(init: Callable, backend: str, **kwargs: Any) -> None:
        set_device = torch.cuda.set_device
        torch.cuda.set_device = lambda device: None  # only while mmengine would call it
        try:
            init('gloo', **kwargs)
        finally:
            torch.cuda.set_device = set_device

    for launcher in ('pytorch', 'slurm', 'mpi'):
        around(utils, f'_init_dist_{launcher}')(with_gloo)

    @around(MMDistributedDataParallel, '__init__')
    def without_device(init: Callable, *args: Any, device_ids: Any = None, **kwargs: Any) -> None:
        init(*args, **kwargs)


@patch(lambda: 'state_dict' in vars(ZeroRedundancyOptimizer))
def sharded_optimizer_is_saved() -> None:
    """mmengine 0.10.7, optim/optimizer/zero_optimizer.py:75: it is saved, and nothing hangs."""
    # All processes have to give their parts, and mmengine asks only the first for them.
    del ZeroRedundancyOptimizer.state_dict

    @around(Runner, 'save_checkpoint')
    def save_checkpoint(save: Callable, self: Runner, *args: Any, **kwargs: Any) -> None:
        optimizer = getattr(self.optim_wrapper, 'optimizer', None)
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer.consolidate_state_dict()
        save(self, *args, **kwargs)


@patch(lambda: '_forward_' not in source(convert_sync_batchnorm))
def whole_sync_bn() -> None:
    """mmengine 0.10.7, model/utils.py:210: sync_bn keeps hooks, and the activations of timm's."""

    # mmengine's function calls itself by this name for the children of a module.
    def convert(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if isinstance(module, BatchNormAct2d):
            converted = convert_with_activation(module)
        else:
            converted = convert_sync_batchnorm(module, *args, **kwargs)
        for name, value in vars(module).items():
            if name.startswith('_forward_'):
                setattr(converted, name, value)
        return converted

    replace(convert_sync_batchnorm, convert)


@patch(
    lambda: (
        inspect.signature(activations.checkpoint).parameters['use_reentrant'].default is not False
    )
)
def checkpointing_by_hooks() -> None:
    """torch 2.15.0, utils/checkpoint.py:423: with_cp=True trains in several processes."""
    # mmpretrain, mmcv and mmengine do not choose between PyTorch's two kinds, and the one they
    # get runs a backward pass of its own: DDP then meets a shared weight more than once.
    for function in map(
        inspect.unwrap, (activations.checkpoint, activations.checkpoint_sequential)
    ):
        # In place, for those who have imported the function by its name.
        if 'use_reentrant' in (function.__kwdefaults__ or {}):
            function.__kwdefaults__['use_reentrant'] = False
        else:
            names = function.__code__.co_varnames[: function.__code__.co_argcount]
            defaults = zip(names[-len(function.__defaults__) :], function.__defaults__, strict=True)
            function.__defaults__ = tuple({**dict(defaults), 'use_reentrant': False}.values())
