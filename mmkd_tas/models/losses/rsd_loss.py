"""The loss of redundancy suppression."""

import torch
from torch import Tensor

from ...registry import MODELS
from .base import DistillLoss
from .functional import gather, rsd_loss


@MODELS.register_module()
class RSDLoss(DistillLoss):
    """Correlate each dimension with the teacher's, and with no other.

    See :func:`functional.rsd_loss`. Statistics and correlations are those of the batch of
    all processes, and so are the gradients. With accumulated gradients they are those of each
    forward alone. Source: "Cross-Architecture Distillation Made
    Simple with Redundancy Suppression", ICCV 2025, arXiv 2507.21844.

    Args:
        kappa: Weight of the correlations between different dimensions.
        loss_weight, detach_target: See :class:`DistillLoss`. The loss is a sum over the D
            dimensions, so that the weight should be small where D is large.

    Raises:
        SetupError: If kappa is negative.
    """

    def __init__(
        self, kappa: float = 0.01, loss_weight: float = 1.0, detach_target: bool = True
    ) -> None:
        super().__init__(loss_weight, detach_target)
        self.kappa = kappa
        self._require(kappa >= 0, 'kappa', 'must not be negative')

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S, preds_T: Features of one width, or logits, ``(N, D)``.
        """
        rows, _ = gather(torch.cat([preds_S, self.target(preds_T)], dim=1), len(preds_S))
        student, teacher = rows.split([preds_S.shape[1], preds_T.shape[1]], dim=1)
        return self.loss_weight * rsd_loss(student, teacher, kappa=self.kappa)
