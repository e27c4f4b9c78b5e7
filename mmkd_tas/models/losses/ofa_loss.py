"""The loss of OFA-KD on logits."""

from collections.abc import Sequence

from torch import Tensor

from ...errors import SetupError
from ...registry import MODELS
from .base import DistillLoss
from .functional import ofa_loss


@MODELS.register_module()
class OFALoss(DistillLoss):
    """Target-enhanced distillation on logits, of one or of several outputs.

    The mean of :func:`functional.ofa_loss` over the images; where the student has
    several outputs (exit branches), the sum of theirs. Source: Hao et al.,
    "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation", NeurIPS 2023, section 3.3.

    Args:
        gamma: Exponent, at least 1; one for each output, or one for all.
        tau: Temperature of both softmaxes.
        loss_weight, detach_target: See :class:`DistillLoss`.

    Raises:
        SetupError: If gamma is less than 1, or not one per output; if tau is not
            positive.
    """

    def __init__(
        self,
        gamma: float | Sequence[float] = 1.0,
        tau: float = 1.0,
        loss_weight: float = 1.0,
        detach_target: bool = True,
    ) -> None:
        super().__init__(loss_weight, detach_target)
        self.gamma = gamma
        self.tau = tau
        gammas = [gamma] if isinstance(gamma, int | float) else gamma
        self._require(all(value >= 1 for value in gammas), 'gamma', 'has to be at least 1')
        self._require(tau > 0, 'tau', 'has to be positive')

    def forward(
        self,
        preds_S: Tensor | Sequence[Tensor],
        preds_T: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S: Logits of the student, ``(N, C)``, or several such.
            preds_T: Logits of the teacher, ``(N, C)``.
            labels: Class indices ``(N,)`` or shares ``(N, C)``.
        """
        outputs = [preds_S] if isinstance(preds_S, Tensor) else preds_S
        one_for_all = isinstance(self.gamma, int | float)
        gammas = [self.gamma] * len(outputs) if one_for_all else self.gamma
        if len(gammas) != len(outputs):
            raise SetupError(
                f'OFALoss: gamma={self.gamma} has {len(gammas)} values for {len(outputs)} outputs'
            )
        target = self.target(preds_T)
        return self.loss_weight * sum(
            ofa_loss(output, target, labels, gamma=gamma, tau=self.tau).mean()
            for output, gamma in zip(outputs, gammas, strict=True)
        )
