"""The loss of DKD on logits."""

from torch import Tensor

from ...registry import MODELS
from .base import DistillLoss
from .functional import dkd_loss


@MODELS.register_module()
class DKDLoss(DistillLoss):
    """Distil the true class and the others apart.

    The mean of :func:`functional.dkd_loss` over the images. MMRazor's loss of this name
    equals it, but for logits far apart (its logarithm of a softmax is infinite there, and its
    mask of -1000 too small) and for its ``reduction``, which has no effect. Source: Zhao
    et al., "Decoupled Knowledge Distillation", CVPR 2022.

    Args:
        tau: Temperature of the softmaxes.
        alpha, beta: Weights of the true class and of the others.
        loss_weight, detach_target: See :class:`DistillLoss`.

    Raises:
        SetupError: If tau is not positive.
    """

    def __init__(
        self,
        tau: float = 1.0,
        alpha: float = 1.0,
        beta: float = 1.0,
        loss_weight: float = 1.0,
        detach_target: bool = True,
    ) -> None:
        super().__init__(loss_weight, detach_target)
        self.tau = tau
        self.alpha = alpha
        self.beta = beta
        self._require(tau > 0, 'tau', 'has to be positive')

    def forward(self, preds_S: Tensor, preds_T: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S, preds_T: Logits of student and teacher, ``(N, C)``.
            labels: Class indices ``(N,)`` or shares ``(N, C)``.
        """
        keys = dict(alpha=self.alpha, beta=self.beta, tau=self.tau)
        return self.loss_weight * dkd_loss(preds_S, self.target(preds_T), labels, **keys).mean()
