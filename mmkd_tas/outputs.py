"""What models of every library say of themselves, and what they return."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SetupError


def num_classes(model: nn.Module) -> int | None:
    """Return how many classes a classifier says it has.

    Returns:
        0 for a model without a head, None where the model does not say.
    """
    if getattr(model, 'head', model) is None:  # mmpretrain's ImageClassifier(head=None)
        return 0
    for part in (model, getattr(model, 'head', None), getattr(model, 'model', None)):
        count = getattr(part, 'num_classes', None)
        if isinstance(count, int):
            return count
    for part in (model, getattr(model, 'model', None)):
        if hasattr(part, 'base_model_prefix') and part.base_model is part:
            return 0  # of Hugging Face, without the classifier around it
    # of LeNet5, InceptionV3 and VGG the backbone makes the logits, unless this is -1
    count = getattr(getattr(model, 'backbone', None), 'num_classes', None)
    return count if isinstance(count, int) and count > 0 else None


def built_for(model: nn.Module) -> int | tuple[int, int] | None:
    """Return the image size that a model was built for, where it says so."""
    for module in model.modules():
        for name in ('img_size', 'init_input_size'):
            size = getattr(module, name, None)
            if isinstance(size, int) or (isinstance(size, tuple | list) and len(size) == 2):
                return size
    return None


def vector_of(output: Any, headless: bool = False) -> Tensor:
    """Return the one vector per image, ``(N, D)``, in what a model returns.

    Args:
        output: Of a classifier: logits; an object or mapping that has ``logits`` (Hugging
            Face, torchvision's models with auxiliary classifiers); or the logits of
            several classifiers, which are added up, as mmpretrain's Conformer does.
        headless: The model has no classifier and returns a feature: that, or the
            ``pooler_output`` or else ``last_hidden_state`` of an object, or the last of
            several. Maps ``(N, D, H, W)`` and tokens ``(N, L, D)`` are averaged over
            the positions.

    Raises:
        SetupError: If there is no such thing in it.
    """
    names = (*(('pooler_output', 'last_hidden_state') if headless else ()), 'logits')
    get = output.get if isinstance(output, Mapping) else lambda name: getattr(output, name, None)
    found = next((part for name in names if torch.is_tensor(part := get(name))), output)
    if isinstance(found, list | tuple) and found:
        vectors = [vector_of(part, headless) for part in found]
        if headless:
            return vectors[-1]
        if len({vector.shape for vector in vectors}) == 1:
            return sum(vectors)
    if torch.is_tensor(found):
        if headless and found.ndim in (3, 4):
            return found.mean(1) if found.ndim == 3 else found.mean((2, 3))
        if found.ndim == 2:
            return found
        found = f'a tensor {tuple(found.shape)}'
    else:
        found = type(output).__name__
    raise SetupError(
        f'a classifier returns logits (N, C), and this model returns {found}; wrap it in a module '
        'that returns logits, or say num_classes=0 if it has no head'
    )


def pooled_of(inputs: list[Tensor], dims: list[int]) -> Tensor:
    """Return the pooled feature ``(N, D)``, by what enters the classifiers.

    Args:
        inputs: Vectors, or maps and tokens, whose mean over the positions is taken. Of
            several vectors, the mean, or, where their widths differ, all, one after another.
        dims: The dimension of the channels of each.
    """
    vectors = [
        x if x.ndim == 2 else x.movedim(dim, 1).flatten(2).mean(2)
        for x, dim in zip(inputs, dims, strict=True)
    ]
    if len(vectors) == 1:
        return vectors[0]
    same = len({vector.shape for vector in vectors}) == 1
    return torch.stack(vectors).mean(0) if same else torch.cat(vectors, dim=1)
