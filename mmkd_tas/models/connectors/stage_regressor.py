"""The regressors of FitNets."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import SetupError
from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector
from .blocks import INIT, PatchProjector
from .pair_projector import Pair


@MODELS.register_module()
class StageRegressor(StageConnector):
    """Stages of the student -> what those of the teacher should be, width and grid.

    By a patch embedding for each (:class:`blocks.PatchProjector`). Its inputs are the stages
    that learn, and then as many that are learned from. Source: Romero et al., "FitNets",
    ICLR 2015 (regressors); for pairs of any architectures as in OFA-KD's comparison.

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        init_cfg: mmengine's; by default convolutions Kaiming-normal over the fan-out.

    Raises:
        SetupError: If the inputs are no pairs.
    """

    inputs = (
        'student.stage1',
        'student.stage2',
        'student.stage3',
        'student.stage4',
        'teacher.stage1',
        'teacher.stage2',
        'teacher.stage3',
        'teacher.stage4',
    )

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        stages = self._known(stages)
        count = len(stages) // 2
        if count == 0 or len(stages) % 2:
            raise SetupError(
                f'StageRegressor: {len(stages)} inputs do not make pairs; name stages that learn, '
                "and then as many that they learn from: ['student.stage4', 'teacher.stage4']"
            )
        self.targets = stages[count:]
        self.regressors = nn.ModuleList(map(PatchProjector, stages[:count], self.targets))

    def forward_train(self, *features: Tensor) -> Pair:
        """Return the maps ``(N, C, H, W)`` of each stage, as lists.

        Args:
            features: In the layouts of their stages.
        """
        count = len(self.targets)
        learned = [r(f).mT for r, f in zip(self.regressors, features[:count], strict=True)]
        return Pair(
            [f.unflatten(2, s.grid) for s, f in zip(self.targets, learned, strict=True)],
            [s.to_map(f) for s, f in zip(self.targets, features[count:], strict=True)],
        )
