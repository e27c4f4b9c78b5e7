"""The complementary feature mapper of HCD."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector
from .blocks import INIT, pool_of, pool_width


@MODELS.register_module()
class ComplementaryFeatureMapper(StageConnector):
    r"""Stages of the student and the teacher's feature -> K sub-logits per stage.

    .. math:: u_k = \mathrm{Proj}_k(f_s^k), \quad
        \tilde z_k = W'_k\, \mathrm{ReLU}(W_k [u_k; f_t] + b_k) + b'_k

    Proj is what the exits of OFA-KD have (:func:`blocks.pool_of`): separable convolutions
    for maps, patch merging and transformer blocks for tokens. The mappings of all stages
    are one batched computation, with the teacher's width as the hidden one. Source: Xu et
    al., "Heterogeneous Complementary Distillation", AAAI 2026 (CFM).

    The last input is the teacher's feature; which stages is said by the others:
    ``inputs=['student.stage3', 'student.stage4', 'teacher.pooled']``.

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        num_sub_logits: K.
        num_heads: Of the transformer blocks for tokens.
        init_cfg: mmengine's.
    """

    inputs = (
        'student.stage1',
        'student.stage2',
        'student.stage3',
        'student.stage4',
        'teacher.pooled',
    )

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        num_sub_logits: int = 4,
        num_heads: int = 4,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        *own, last = self._known(stages)
        self.num_sub_logits = num_sub_logits
        width = pool_width(own, student, teacher)
        self.pools = nn.ModuleList(pool_of(stage, student, width, num_heads) for stage in own)
        self.inner = StackedLinear(len(own), width + last.channels, teacher.width)
        self.outer = StackedLinear(len(own), teacher.width, num_sub_logits * teacher.num_classes)

    def forward_train(self, *features: Tensor) -> Tensor:
        """Return the sub-logits of S stages, ``(S, N, K, C)``.

        Args:
            features: Of the student's stages, in their layouts, and the teacher's pooled
                feature ``(N, D)``.
        """
        *own, last = features
        pooled = torch.stack([pool(f) for pool, f in zip(self.pools, own, strict=True)])
        joined = torch.cat([pooled, last.expand(len(own), -1, -1)], dim=-1)
        sub_logits = self.outer(self.inner(joined).relu())
        return sub_logits.unflatten(-1, (self.num_sub_logits, -1))


class StackedLinear(nn.Module):
    """S linear layers at once: ``(S, N, D) -> (S, N, D')``."""

    def __init__(self, layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(layers, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(layers, 1, out_features))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, rows: Tensor) -> Tensor:
        """Apply each layer to its rows."""
        return torch.baddbmm(self.bias, rows, self.weight)
