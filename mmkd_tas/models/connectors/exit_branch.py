"""The exit branches of OFA-KD."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector
from .blocks import INIT, pool_of, pool_width


@MODELS.register_module()
class ExitBranch(StageConnector):
    """Stages of the student -> logits, by a branch for each.

    After stage k of 4, with D the width of a model's pooled feature:

    - where the student has maps ``(N, C, H, W)``: 4 - k separable convolutions of
      stride 2, doubling the channels up to max(D_student, D_teacher); at the last
      stage a 1x1 convolution; average pooling; linear.
    - where it has tokens: patch merging down to about 7 x 7 tokens, max(4 - k, 1)
      transformer blocks of width D_student; class token or mean; linear.

    Which stages: ``inputs=['student.stage2', 'student.stage4']`` in the config.
    Source: Hao et al., "One-for-All", NeurIPS 2023, section 3.2, and its code.

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        num_heads: Heads of the transformer blocks.
        init_cfg: mmengine's; by default convolutions Kaiming-normal over the fan-out,
            linear layers truncated normal with 0.02.
    """

    inputs = ('student.stage1', 'student.stage2', 'student.stage3', 'student.stage4')

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        num_heads: int = 4,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        pools = [
            pool_of(stage, student, pool_width([stage], student, teacher), num_heads)
            for stage in self._known(stages)
        ]
        self.branches = nn.ModuleList(
            nn.Sequential(pool, nn.Linear(pool.width, teacher.num_classes)) for pool in pools
        )

    def forward_train(self, *features: Tensor) -> list[Tensor]:
        """Return the logits of each branch, ``(N, C)``.

        Args:
            features: Of the student, in the layouts of their stages.
        """
        return [branch(f) for branch, f in zip(self.branches, features, strict=True)]
