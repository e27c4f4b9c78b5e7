"""Two features of different models, made comparable."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SetupError
from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector


class Pair(NamedTuple):
    """Two features of one width, ``(N, D)`` or, of R regions, ``(N, R, D)``.

    Attributes:
        learner: Of the model that learns.
        target: Of the model that it learns from.
    """

    learner: Tensor
    target: Tensor


@MODELS.register_module()
class PairProjector(StageConnector):
    """Smooth two features over the positions, and project them to one width.

    Its inputs are the feature that learns and the one that is learned from. Source:
    Li et al., "Fuse Before Transfer", ICCV 2025 (spatial-agnostic features).

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        width: Project both linearly to this many channels. The projection of the second
            learns if the distiller has a loss that takes it with ``detach_target=False``;
            else it is random, and frozen, as no gradient would come to it. By default
            only the first is projected, to the width of the second, and only if they differ.
        pool: Average over ``pool x pool`` regions instead of all positions; for inputs
            with positions, such as ``'student.stage4'`` and ``'assistant.feature'``.
        init_cfg: mmengine's.

    Raises:
        SetupError: If there are more regions than positions.
    """

    inputs = ('student.pooled', 'teacher.pooled')

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        width: int | None = None,
        pool: int = 1,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg)
        self.stages = self._known(stages)
        self.pool = pool
        if len(self.stages) != 2:
            raise SetupError(
                f'PairProjector: it compares two features, and inputs names {len(self.stages)}'
            )
        for stage in self.stages:
            if pool not in range(1, min(stage.grid) + 1):
                raise SetupError(
                    f"PairProjector: pool={pool!r} regions per side, where '{stage.module}' has "
                    f"a grid of {stage.grid}; inputs=['student.stage4', 'teacher.stage4'] "
                    'have positions'
                )
        channels_s, channels_t = (stage.channels for stage in self.stages)
        if width:
            projections = nn.Linear(channels_s, width), nn.Linear(channels_t, width)
            projections[1].requires_grad_(False)  # see learn_target
        elif channels_s != channels_t:
            projections = nn.Linear(channels_s, channels_t), nn.Identity()
        else:
            projections = nn.Identity(), nn.Identity()
        self.projections = nn.ModuleList(projections)

    def learn_target(self) -> None:
        """Let the projection of the second feature learn."""
        self.projections[1].requires_grad_(True)

    def forward_train(self, feature_s: Tensor, feature_t: Tensor) -> Pair:
        """Return the two features at one width.

        Args:
            feature_s, feature_t: In the layouts of their stages.
        """
        pairs = zip(self.projections, self.stages, (feature_s, feature_t), strict=True)
        return Pair(*(projection(self._smooth(stage, f)) for projection, stage, f in pairs))

    def _smooth(self, stage: Stage, feature: Tensor) -> Tensor:
        if self.pool == 1:
            return stage.to_tokens(feature).mean(1)
        regions = F.adaptive_avg_pool2d(stage.to_map(feature), self.pool)
        return regions.flatten(2).transpose(1, 2)
