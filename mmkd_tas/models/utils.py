"""Small questions that several parts ask of a model."""

from mmengine.model import is_model_wrapper
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters (elements), shared ones once."""
    return sum(p.numel() for p in module.parameters())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a DDP wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model
