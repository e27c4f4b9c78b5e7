"""Families of classifiers as data: where their stages end.

A *stack* is the row of modules through which the features pass: the layers of a
ResNet, the blocks of a ViT. timm keeps a record of it in each model, and the
table below names it for mmpretrain's backbones; subclasses inherit the entry of
their parent. :func:`choose` picks from a stack the modules that end the stages.
"""

import re
from dataclasses import dataclass

import mmpretrain.models.backbones as mm
import timm.models as tm
from mmpretrain.models import TimmClassifier
from torch import nn

from ..errors import SetupError
from .stage import Stage

# mmpretrain: class of the backbone -> which of its children make up the stack.
_MMPRETRAIN: dict[type, str] = {
    mm.BEiTViT: r'layers',
    mm.ConvMixer: r'stages',
    mm.ConvNeXt: r'stages',
    mm.CSPNet: r'stages',
    mm.DaViT: r'stages',
    mm.DenseNet: r'stages',
    mm.EdgeNeXt: r'stages',
    mm.EfficientFormer: r'network',
    mm.EfficientNet: r'layers',
    mm.EfficientNetV2: r'layers',
    mm.HorNet: r'stages',
    mm.MlpMixer: r'layers',
    mm.MobileNetV2: r'layer\d|conv2',
    mm.MobileNetV3: r'layer\d+',
    mm.MobileOne: r'stage[1-4]',
    mm.MobileViT: r'layers|conv_1x1_exp',
    mm.PCPVT: r'stages',
    mm.PoolFormer: r'network',
    mm.RepVGG: r'stage_[1-4]',
    mm.ResNet: r'layer[1-4]',
    mm.ResNet_CIFAR: r'layer[1-4]',
    mm.RIFormer: r'network',
    mm.ShuffleNetV2: r'layers',
    mm.SwinTransformer: r'stages',
    mm.SwinTransformerV2: r'stages',
    mm.T2T_ViT: r'encoder',
    mm.TinyViT: r'stages',
    mm.VAN: r'blocks\d',
    mm.VGG: r'features',
    mm.VisionTransformer: r'layers',
    mm.XCiT: r'xca_layers',
}

# timm: where its own record (feature_info) needs a word more.
_TIMM: dict[type, str] = {
    # the final 1x1 convolution ends the last stage (as OFA-KD has it for MobileNetV2)
    tm.EfficientNet: r'blocks\.\d+|bn2',
    tm.Twins: r'blocks\.\d+',
}
# timm: models whose class token joins only after the stack.
_TIMM_LATE_TOKEN = (tm.Cait, tm.Xcit)


@dataclass(frozen=True)
class Stack:
    """The row of modules of a backbone that end in a feature.

    Attributes:
        modules: Their paths, in order. One that is never called itself (a
            ``ModuleList``) stands for its children.
        prefix: Number of prefix tokens within the stack.
        channels: Of each output, where the library tells, else empty.
        reductions: Image size over grid size of each output, likewise.
    """

    modules: tuple[str, ...]
    prefix: int = 0
    channels: tuple[int, ...] = ()
    reductions: tuple[int, ...] = ()


def find_stack(model: nn.Module) -> Stack | None:
    """Return the stack of a classifier of mmpretrain or timm, None if it is not known."""
    if isinstance(model, TimmClassifier) or hasattr(getattr(model, 'model', None), 'feature_info'):
        return _timm_stack(model.model, 'model.')
    backbone = getattr(model, 'backbone', None)
    if isinstance(backbone, mm.TIMMBackbone):
        return _timm_stack(backbone.timm_model, 'backbone.timm_model.')
    pattern = _entry(_MMPRETRAIN, backbone)
    if pattern is None:
        return None
    names = [name for name, _ in backbone.named_children() if re.fullmatch(pattern, name)]
    prefix = getattr(backbone, 'num_extra_tokens', 0)
    return Stack(tuple(f'backbone.{name}' for name in names), prefix)


def _timm_stack(model: nn.Module, root: str) -> Stack | None:
    if isinstance(model, tm.Hiera):
        return None  # its tokens are not in the order of the image
    prefix = 0 if isinstance(model, _TIMM_LATE_TOKEN) else getattr(model, 'num_prefix_tokens', 0)
    if pattern := _entry(_TIMM, model):
        names = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
        return Stack(tuple(root + name for name in names), prefix)
    record = getattr(model, 'feature_info', None)
    modules = dict(model.named_modules())
    if not isinstance(record, list) or not all(e.get('module') in modules for e in record):
        return None
    return Stack(
        tuple(root + entry['module'] for entry in record),
        prefix,
        tuple(entry['num_chs'] for entry in record),
        tuple(entry['reduction'] for entry in record),
    )


def _entry(table: dict[type, str], module: nn.Module | None) -> str | None:
    return next((table[cls] for cls in type(module).__mro__ if cls in table), None)


def choose(stack: list[Stage], reductions: tuple[int, ...]) -> list[Stage]:
    """Pick the four stages from the outputs of a stack.

    - Of four outputs, all.
    - Where the grid shrinks on the way, the last output of each of the last four grids.
    - In a stack of equal blocks, those at 2/12, 4/12, 10/12 and 12/12: the
      proportions of Swin-T's depths 2, 2, 6, 2.

    Args:
        stack: The outputs, in order.
        reductions: As in :class:`Stack`; empty to go by the grids.

    Raises:
        SetupError: If there are fewer than four grids or blocks.
    """
    if len(stack) == 4:
        return stack
    keys = reductions or [stage.grid for stage in stack]
    last = dict(zip(keys, stack, strict=True))
    if len(last) >= 4:
        return list(last.values())[-4:]
    if len(last) == 1 and len(stack) >= 4:
        count = len(stack)
        ends = [count]
        for twelfths in (10, 4, 2):
            ends.insert(0, max(1, min(round(count * twelfths / 12), ends[0] - 1)))
        return [stack[end - 1] for end in ends]
    raise SetupError(
        f'its {len(stack)} parts have {len(last)} different grids '
        f'({", ".join(map(str, last))}), which does not make four stages'
    )
