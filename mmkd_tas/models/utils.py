"""Small questions that several parts ask of a model."""

from mmengine.model import is_model_wrapper
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters (elements), shared ones once."""
    return sum(p.numel() for p in module.parameters())


def num_classes(model: nn.Module) -> int | None:
    """Return how many classes a mmpretrain or timm classifier tells, if it says so."""
    for part in (getattr(model, 'head', None), getattr(model, 'model', None), model):
        count = getattr(part, 'num_classes', None)
        if isinstance(count, int):
            return count
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a DDP wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model
