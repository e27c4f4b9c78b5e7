"""What the connectors of this package have in common."""

from collections.abc import Sequence
from typing import Any

from mmrazor.models.architectures.connectors.base_connector import BaseConnector
from torch import Tensor

from ...errors import SetupError
from ...stages import ModelView, Stage


class StageConnector(BaseConnector):
    """A connector that is built from the stages of student and teacher.

    A subclass takes the two views and the stages of its inputs first, and then the
    arguments of its config. It says in ``inputs`` what it wants to be called with,
    unless the config does, and gets it in that order, stages in the layout that the
    model has them in (see :class:`Stage`). Where connectors of others shall be built
    from what it returns, it says in ``outputs`` what that is.

    Args:
        student, teacher: Views of the two models; given by the distiller.
        stages: Of each input; given by the distiller. Vectors are stages with the
            layout ``'NC'``; what is not known, as what a recorder of the config
            records, is None.
    """

    inputs: tuple[str, ...] = ()

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage | None] = (),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.outputs: dict[str, Stage] = {}

    def _known(self, stages: Sequence[Stage | None]) -> list[Stage]:
        """Return the stages, all of which a subclass has to know."""
        if None in stages:
            raise SetupError(
                f'{type(self).__name__}: number {stages.index(None) + 1} of its inputs has to be a '
                "stage, 'pooled' or 'logits' of student or teacher, or a field that a connector "
                'above it describes in its `outputs`'
            )
        return list(stages)

    def forward(self, *features: Tensor) -> Any:
        """Return what the connector makes of its inputs."""
        return self.forward_train(*features)
