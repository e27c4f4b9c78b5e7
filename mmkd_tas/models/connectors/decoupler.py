"""The decoupler of RSD."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...errors import SetupError
from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector
from .blocks import INIT


@MODELS.register_module()
class Decoupler(StageConnector):
    r"""Map a feature to the width of another: linear, BatchNorm, GELU, linear.

    .. math:: h: D_s \to g D_s \to D_t

    It keeps what is particular to an architecture out of the student's feature. Source:
    "Cross-Architecture Distillation Made Simple with Redundancy Suppression", ICCV 2025
    (architecture-agnostic decoupler). Its inputs are the feature, and the one whose width
    is wanted.

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        expansion: g.
        init_cfg: mmengine's; by default linear layers truncated normal with 0.02.
    """

    inputs = ('student.pooled', 'teacher.pooled')

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        expansion: int = 2,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        source, target = self._known(stages)
        if source.layout != 'NC':
            raise SetupError(
                "Decoupler: the first of its inputs has to be a vector, such as 'student.pooled'"
            )
        hidden = expansion * source.channels
        self.layers = nn.Sequential(
            nn.Linear(source.channels, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, target.channels, bias=False),
        )

    def forward_train(self, feature: Tensor, wanted: Tensor) -> Tensor:
        """Return the feature ``(N, D_t)``; of the second input only the width counts."""
        return self.layers(feature)
