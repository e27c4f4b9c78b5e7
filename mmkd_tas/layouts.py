"""Weights in the layouts that libraries had before, or of models for other image sizes."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from math import isqrt

import timm
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

_POSITIONS = re.compile(r'pos_?emb|position(al)?_?embed')
# What the names of weights tell, the more special first.
_KNOWN = {
    r'architecture\.|distiller\.': 'a distillation run',
    r'backbone\.': "MMPretrain's",
    r'encoder\.layers\.encoder_layer_\d': "torchvision's ViT",
    r'features\.\d': "torchvision's CNNs and Swin",
    r'visual\.': "CLIP's",
    r'\w+\.(encoder|embeddings|embedder)\.': "Hugging Face's",
    r'layers\.\d+\.blocks\.\d+\.attn\.': "timm's Swin",
    r'blocks\.\d+\.mlp_tokens\.': "timm's MLP-Mixer",
    r'blocks\.\d+\.linear_tokens\.': "timm's ResMLP",
    r'blocks\.\d+\.attn\.': "timm's ViT and DeiT",
    r'stages\.\d+\.blocks\.\d+\.': "timm's ConvNeXt",
    r'stages\.\d+\.\d+\.dwconv\.': "the original ConvNeXt's",
    r'layer1\.0\.': 'ResNets of timm and torchvision',
}


def adapted(model: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights as a model names and shapes them, and what was done to them.

    timm's own filters rename what older versions and the authors of a model called otherwise
    (``checkpoint_filter_fn``). Position tables of images of another size are resampled by
    timm's :func:`resample_abs_pos_embed`: bicubic, without the prefix tokens.

    Args:
        model: Is not changed.
        weights: Its own, from a file.
    """
    notes, found = [], weights
    inner = next(
        (m for m in (model, getattr(model, 'model', None)) if hasattr(m, 'pretrained_cfg')), None
    )
    if inner is not None and (convert := _filter_of(inner)):
        found = convert(found)
        if found.keys() != weights.keys():
            notes.append("timm's filter for older layouts has renamed its weights")
    expected = model.state_dict()
    found = {key: _resampled(key, value, expected.get(key)) for key, value in found.items()}
    notes += [
        f'{key} is resampled from {tuple(weights[key].shape)} to {tuple(value.shape)}, for the '
        'size of the images or patches'
        for key, value in found.items()
        if key in weights and weights[key].shape != value.shape
    ]
    return found, notes


def layout_of(keys: Iterable[str]) -> str | None:
    """Return whose models have weights of such names, None if that is not known."""
    keys = list(keys)
    for pattern, name in _KNOWN.items():
        if any(re.match(pattern, key) for key in keys):
            return name
    return None


def _filter_of(model: nn.Module) -> Callable[[dict], dict] | None:
    """Return what timm passes weights through that it loads into such a model."""
    modules = [type(model).__module__]
    name = (model.pretrained_cfg or {}).get('architecture')
    if name and timm.is_model(name):
        modules.insert(0, timm.model_entrypoint(name).__module__)
    filters = (getattr(sys.modules[module], 'checkpoint_filter_fn', None) for module in modules)
    convert = next(filter(None, filters), None)
    if convert is None:
        return None
    # DeiT III, which timm itself loads so
    taken = inspect.signature(convert).parameters
    options = {'adapt_layer_scale': True} if 'adapt_layer_scale' in taken else {}

    def converted(weights: dict) -> dict:
        try:
            return dict(convert(dict(weights), model, **options))
        except (AttributeError, AssertionError, IndexError, KeyError, RuntimeError, ValueError):
            return weights  # of another model

    return converted


def _resampled(key: str, table: Tensor, own: Tensor | None) -> Tensor:
    """Return a table of absolute positions, ``(1, L, D)`` or ``(L, D)``, for another grid."""
    differs = own is not None and own.shape != table.shape and own.ndim == table.ndim
    if not (differs and _POSITIONS.search(key) and own.ndim in (2, 3)):
        return table
    if own.shape[:-2] != table.shape[:-2] or own.shape[-1] != table.shape[-1]:
        return table
    before, after = table.shape[-2], own.shape[-2]
    for prefix in range(min(before, after)):
        if all(isqrt(n - prefix) ** 2 == n - prefix for n in (before, after)):
            side = isqrt(after - prefix)
            whole = table if table.ndim == 3 else table[None]
            made = resample_abs_pos_embed(whole, [side, side], num_prefix_tokens=prefix)
            return made.view_as(own)
    return table
