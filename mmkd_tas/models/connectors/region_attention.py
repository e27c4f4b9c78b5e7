"""The region-aware attention of PAT."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SetupError
from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector
from .blocks import INIT, PatchProjector


@MODELS.register_module()
class RegionAttention(StageConnector):
    """Stages of the student -> maps with the channels and grids of the teacher's stages.

    Each stage becomes a patch embedding of R x R regions; the regions of all stages attend
    to each other, so that a stage of the teacher is compared with whatever stages of the
    student see what it sees. A BatchNorm and a 1x1 convolution per stage bring what comes
    out to the channels of the teacher's stage of the same number, and bilinear
    interpolation to its grid. Source: Lin et al., "Perspective-Aware Teaching: Adapting Knowledge
    for Heterogeneous Distillation", ICCV 2025, arXiv 2501.08885 (region-aware attention).

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        width: Of the attention; a multiple of num_heads, and even.
        regions: R.
        num_heads: Of the attention.
        init_cfg: mmengine's; by default convolutions Kaiming-normal over the fan-out, linear
            layers truncated normal with 0.02.

    Raises:
        SetupError: If an input is not a stage of the student, or the width does not fit.
    """

    inputs = ('student.stage1', 'student.stage2', 'student.stage3', 'student.stage4')

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        width: int = 512,
        regions: int = 4,
        num_heads: int = 8,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        stages = self._known(stages)
        if width % num_heads or width % 2:
            raise SetupError(
                f'RegionAttention: width={width} is not even, or no multiple of num_heads='
                f'{num_heads}'
            )
        if any(stage not in student.stages for stage in stages):
            raise SetupError(
                "RegionAttention: inputs takes stages of the student: 'student.stage4'"
            )
        self.num_heads = num_heads
        self.regions = Stage('regions', 'NLC', channels=width, grid=(regions, regions))
        self.targets = [teacher.stage(student.stages.index(stage) + 1) for stage in stages]
        self.embeddings = nn.ModuleList(PatchProjector(stage, self.regions) for stage in stages)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        codes = _position_codes(len(stages) * self.regions.tokens, width)
        self.register_buffer('position_codes', codes, persistent=False)
        self.aligners = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, target.channels, 1, bias=False))
            for target in self.targets
        )

    def forward_train(self, *features: Tensor) -> list[Tensor]:
        """Return a map ``(N, C, H, W)`` for each stage, as the teacher's has it.

        Args:
            features: Of the student's stages, in their layouts.
        """
        tokens = [embed(f) for embed, f in zip(self.embeddings, features, strict=True)]
        tokens = self.norm(torch.cat(tokens, dim=1))
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        query, key = self.query(tokens) + self.position_codes, key + self.position_codes
        heads = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        blended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        parts = blended.split(self.regions.tokens, dim=1)
        return [
            F.interpolate(aligner(self.regions.to_map(part)), target.grid, mode='bilinear')
            for aligner, part, target in zip(self.aligners, parts, self.targets, strict=True)
        ]


def _position_codes(length: int, width: int) -> Tensor:
    """Return sines and cosines of the positions, ``(length, width)`` (Vaswani et al., 2017)."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000) / width))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
