"""Small questions that several parts ask of a model."""

import contextlib

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..errors import SetupError
from ..outputs import num_classes
from ..stages import view_of


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters (elements), shared ones once."""
    return sum(p.numel() for p in module.parameters())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a DDP wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model


def classes_of(model: nn.Module) -> int | None:
    """Return the number of classes that a model says it has, or shows, 0 without a head."""
    count = num_classes(model)
    if count is None and hasattr(model, 'stage_view'):
        with contextlib.suppress(SetupError):
            count = view_of(model).num_classes
    return count


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without waiting for what a GPU still has to do."""
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        tensor = tensor.pin_memory()  # else the copy waits, whatever non_blocking says
    return tensor.to(device, non_blocking=True)
