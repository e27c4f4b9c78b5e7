"""The losses of CC and RKD: how images relate to each other."""

from torch import Tensor

from ...registry import MODELS
from .base import DistillLoss
from .functional import cc_loss, rkd_loss


@MODELS.register_module()
class CCLoss(DistillLoss):
    """Keep what neighbouring images of a batch have in common from differing from the teacher.

    See :func:`functional.cc_loss`. The neighbours are those in the batch of each process.

    Args:
        loss_weight: Factor of the loss.
        detach_target: By default the teacher's side has gradients, for the projection there.
    """

    def __init__(self, loss_weight: float = 0.02, detach_target: bool = False) -> None:
        super().__init__(loss_weight, detach_target)

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S, preds_T: Features of one width, ``(N, D)``.
        """
        return self.loss_weight * cc_loss(preds_S, self.target(preds_T))


@MODELS.register_module()
class RKDLoss(DistillLoss):
    """Learn the distances and angles between the images, whatever the widths of the features.

    See :func:`functional.rkd_loss`. The images are those in the batch of each process: the
    angles of N images take N^3 numbers. Source: Park et al., "Relational Knowledge
    Distillation", CVPR 2019.

    Args:
        distance_weight, angle_weight: Of the two terms.
        loss_weight, detach_target: See :class:`DistillLoss`.
    """

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        loss_weight: float = 1.0,
        detach_target: bool = True,
    ) -> None:
        super().__init__(loss_weight, detach_target)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> dict[str, Tensor]:
        """Return the two terms, scalars, weighted.

        Args:
            preds_S, preds_T: Features ``(N, D_s)`` and ``(N, D_t)``.
        """
        distance, angle = rkd_loss(preds_S, self.target(preds_T))
        return {
            'distance': self.loss_weight * self.distance_weight * distance,
            'angle': self.loss_weight * self.angle_weight * angle,
        }
