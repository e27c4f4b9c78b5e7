"""What the connectors of this package have in common."""

from typing import Any

from mmrazor.models.architectures.connectors.base_connector import BaseConnector
from torch import Tensor

from ...stages import ModelView


class StageConnector(BaseConnector):
    """A connector that is built from the stages of student and teacher.

    A subclass takes the two views first, and then the arguments of its config;
    it says in ``inputs`` which records it wants, and gets them in that order:
    stages as the model has them (see :class:`Stage` for what that means).

    Args:
        student, teacher: Views of the two models; given by the distiller.
    """

    inputs: tuple[str, ...] = ()

    def __init__(
        self, student: ModelView, teacher: ModelView, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)

    def forward(self, *features: Tensor) -> Any:
        """Return what the connector makes of its inputs."""
        return self.forward_train(*features)
