"""Small questions that several parts ask of a model."""

import contextlib

from mmengine.model import is_model_wrapper
from torch import nn

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
