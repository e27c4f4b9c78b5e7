"""Networks that connectors are made of, from the blocks of timm and mmcv."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import DepthwiseSeparableConvModule
from mmcv.cnn.bricks.transformer import PatchEmbed
from timm.models.cait import ClassAttn
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torchvision.ops import Permute

from ...errors import SetupError
from ...stages import ModelView, Stage

# Of the layers of the new networks, as in OFA-KD.
INIT = [
    dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
    dict(type='TruncNormal', layer='Linear', std=0.02),
    dict(type='Constant', layer=['BatchNorm2d', 'LayerNorm'], val=1),
]


def pool_width(stages: Sequence[Stage], student: ModelView, teacher: ModelView) -> int:
    """Return the width of the vectors of stages of the student that shall have one width.

    That of the wider model where all are maps; where any has tokens, the student's: the cost
    of transformer blocks grows with its square.
    """
    maps = all(stage.layout == 'NCHW' for stage in stages)
    return max(student.width, teacher.width) if maps else student.width


def pool_of(stage: Stage, student: ModelView, width: int, num_heads: int = 4) -> nn.Module:
    """Return a network that makes a vector ``(N, width)`` of a stage of the student."""
    if stage not in student.stages:
        raise SetupError(f"'{stage.module}' is not a stage of the student")
    remaining = len(student.stages) - 1 - student.stages.index(stage)
    if stage.layout == 'NCHW':
        return ConvPool(stage, remaining, width)
    return TokenPool(stage, max(remaining, 1), width, num_heads)


class ConvPool(nn.Sequential):
    """Stage -> vector ``(N, width)``: separable convolutions of stride 2, average pooling.

    Args:
        stage: What comes in.
        halvings: Number of blocks; the channels double in each of them. With none, a
            1x1 convolution.
        width: Number of channels of the last.
    """

    def __init__(self, stage: Stage, halvings: int, width: int) -> None:
        channels = [stage.channels * 2**i for i in range(halvings)] + [width]
        blocks = [
            nn.Sequential(_separable(before, before, 2), _separable(before, after, 1))
            for before, after in itertools.pairwise(channels)
        ]
        if not blocks:
            blocks = [nn.Conv2d(stage.channels, width, 1)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.stage = stage
        self.width = width

    def forward(self, feature: Tensor) -> Tensor:
        """Pool a feature in the layout of the stage."""
        return super().forward(self.stage.to_map(feature))


def _separable(before: int, after: int, stride: int) -> nn.Module:
    return DepthwiseSeparableConvModule(
        before,
        after,
        3,
        stride=stride,
        padding=1,
        dw_norm_cfg=None,
        dw_act_cfg=None,
        pw_norm_cfg=dict(type='BN'),
        bias=False,
    )


class TokenPool(nn.Module):
    """Stage -> vector ``(N, width)``: patch merging, transformer blocks, class token or mean.

    The grid is halved as long as its sides stay at 7 tokens or more, the first time with
    a change to the width of the blocks; a GELU follows each time but the last of several.
    Where the stage has a class token it is kept beside the grid, and is the result; else
    the mean of the tokens is.

    Args:
        stage: What comes in.
        depth: Number of transformer blocks.
        width: Their width D.
        num_heads: Their number of heads, fewer where these do not divide the width.
    """

    def __init__(self, stage: Stage, depth: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.stage = stage
        self.width = width
        halvings = max(0, int(math.log2(min(stage.grid) / 7)))
        if halvings:
            merges = [
                nn.Sequential(PatchMerging(before, width), nn.GELU())
                for before in [stage.channels] + [width] * (halvings - 1)
            ]
            if halvings > 1:  # as in OFA-KD's code
                merges[-1] = merges[-1][0]
        else:
            merges = [_linear(stage.channels, width)]
        self.merges = nn.Sequential(*merges)
        self.prefix = _linear(stage.channels, width) if stage.prefix else None
        heads = math.gcd(num_heads, width)
        last = ClassBlock if stage.prefix else Block
        kinds = [Block] * (depth - 1) + [last]
        self.blocks = nn.Sequential(*(kind(width, heads) for kind in kinds))

    def forward(self, feature: Tensor) -> Tensor:
        """Pool a feature in the layout of the stage."""
        grid = self.stage.to_tokens(feature).unflatten(1, self.stage.grid)
        tokens = self.merges(grid).flatten(1, 2)
        if self.prefix is None:
            return self.blocks(tokens).mean(1)
        prefix = self.prefix(self.stage.prefix_tokens(feature))
        return self.blocks(torch.cat([prefix, tokens], dim=1))[:, 0]


class ClassBlock(Block):
    """A last transformer block, of whose outputs the class token alone is used and computed."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__(width, num_heads)
        self.attn = ClassAttn(width, num_heads)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the class token ``(N, 1, C)`` of tokens ``(N, 1 + L, C)``."""
        token = tokens[:, :1] + self.attn(self.norm1(tokens))
        return token + self.mlp(self.norm2(token))


def _linear(before: int, after: int) -> nn.Module:
    return nn.Identity() if before == after else nn.Linear(before, after)


class PatchProjector(nn.Module):
    """Bring a stage of one model to width and grid of a stage of another, by a patch embedding.

    Args:
        source: What comes in.
        target: What comes out, as tokens without prefix, ``(N, L, C)``.
        norm_cfg: Of a norm behind the embedding.
    """

    def __init__(self, source: Stage, target: Stage, norm_cfg: dict | None = None) -> None:
        super().__init__()
        self.source = source
        self.target = target
        patch = tuple(
            max(1, round(ours / theirs))
            for ours, theirs in zip(source.grid, target.grid, strict=True)
        )
        # Patches cover the whole map: where the grids do not divide, it is resized first.
        self.size = tuple(p * side for p, side in zip(patch, target.grid, strict=True))
        self.embedding = PatchEmbed(
            source.channels,
            target.channels,
            kernel_size=patch,
            stride=patch,
            padding=0,
            norm_cfg=norm_cfg,
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Return the tokens of a feature in the layout of the source."""
        grid = self.source.to_map(feature)
        if grid.shape[-2:] != self.size:
            grid = F.interpolate(grid, self.size, mode='bilinear')
        tokens, _ = self.embedding(grid)
        return tokens


class LocalToGlobal(PatchProjector):
    """Bring a stage of one model to width and grid of a stage of another (L2G).

    A patch embedding, and a block that widens the receptive field. Source: Li et al.,
    "Fuse Before Transfer", ICCV 2025, where the block is ``'swin'``.

    Args:
        source, target: See :class:`PatchProjector`.
        window_size: Side of the windows of a Swin block, in tokens.
        block: ``'swin'``, a Swin block of the target's width C, which takes 12 C²
            multiplications for a token; ``'bottleneck'``, one of a quarter of the width
            (1.25 C²); ``'conv'``, a ConvNeXt block of as narrow a middle (0.5 C², and 49 C);
            ``'none'``.
    """

    def __init__(
        self, source: Stage, target: Stage, window_size: int = 7, block: str = 'bottleneck'
    ) -> None:
        super().__init__(source, target, norm_cfg=dict(type='LN'))
        if block not in (known := ('swin', 'bottleneck', 'conv', 'none')):
            raise SetupError(f'HybridAssistant: block={block!r} is not one of {", ".join(known)}')
        width = target.channels
        if block == 'swin':
            self.block = _swin_block(width, target.grid, window_size)
        elif block == 'bottleneck':
            narrow = max(2, width // 4)  # a norm of one channel would return zeros
            inner = _swin_block(narrow, target.grid, window_size)
            # Without the norm, two products in a row feed the frozen tail of the teacher: where
            # that is a CNN's, whose batch norms do not adapt, SGD at a rate of 0.05 diverged.
            widen = nn.Sequential(nn.LayerNorm(narrow), nn.Linear(narrow, width))
            self.block = Residual(nn.Linear(width, narrow), inner, widen)
        elif block == 'conv':
            conv = ConvNeXtBlock(width, mlp_ratio=0.25, ls_init_value=None)
            self.block = nn.Sequential(Permute((0, 3, 1, 2)), conv, Permute((0, 2, 3, 1)))
        else:
            self.block = nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """Return the tokens of a feature in the layout of the source."""
        tokens = super().forward(feature)
        return self.block(tokens.unflatten(1, self.target.grid)).flatten(1, 2)


class Residual(nn.Sequential):
    """Modules in a row, whose result is added to what enters them."""

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape."""
        return features + super().forward(features)


def _swin_block(width: int, grid: tuple[int, int], window_size: int) -> nn.Module:
    heads = max(1, width // 32)
    heads = next(h for h in range(heads, 0, -1) if width % h == 0)
    return SwinTransformerBlock(width, grid, num_heads=heads, window_size=window_size)
