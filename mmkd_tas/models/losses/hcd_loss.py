"""The losses of HCD on sub-logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from .base import DistillLoss
from .functional import in_full_precision, kl_divergence, orthogonality


@MODELS.register_module()
class HCDLoss(DistillLoss):
    r"""Learn from the teacher and from sub-logits of student and teacher together.

    With the sub-logits rectified by the teacher,
    :math:`z_{kj} = \lambda_s \tilde z_{kj} + \lambda_t z_t`, for the stages k and j = 1..K:

    ===== ====================================================================
    term
    ===== ====================================================================
    ce    :math:`\sum_k \mathrm{mean}_j\, \mathrm{CE}(z_{kj}, y)`
    kd    :math:`\tau^2 \mathrm{KL}(p_t \| p_s)`
    sdd   :math:`\sum_k \mathrm{mean}_j\, \tau^2 \mathrm{KL}(p_{kj} \| p_s)`
    ol    :math:`\sum_k` :func:`functional.orthogonality` of :math:`z_{kj}`
    ===== ====================================================================

    each a mean over the images. The student's own cross-entropy is its head's. Source: Xu
    et al., "Heterogeneous Complementary Distillation", AAAI 2026, arXiv 2511.10942.

    Args:
        gt_weight, kd_weight, sdd_weight, ol_weight: Of the terms.
        tau: Temperature of the Kullback-Leibler terms.
        theta: Cosine from which on two sub-logits are too alike.
        lambda_s, lambda_t: Of the rectification.
        label_smoothing: Of the cross-entropy.
        stage_reduction: ``'sum'`` or ``'mean'`` over the stages.
        loss_weight: Factor of all terms.
        detach_target: The sub-logits do not learn from ``sdd``. The paper lets them; a
            student with tokens may then learn nothing at all (docs/results.md).

    Raises:
        SetupError: If tau is not positive, theta is not between -1 and 1, or stage_reduction
            is unknown.
    """

    def __init__(
        self,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        sdd_weight: float = 6.0,
        ol_weight: float = 1.0,
        tau: float = 1.0,
        theta: float = 0.5,
        lambda_s: float = 1.0,
        lambda_t: float = 1.0,
        label_smoothing: float = 0.1,
        stage_reduction: str = 'sum',
        loss_weight: float = 1.0,
        detach_target: bool = True,
    ) -> None:
        super().__init__(loss_weight, detach_target)
        self.weights = dict(ce=gt_weight, kd=kd_weight, sdd=sdd_weight, ol=ol_weight)
        self.tau = tau
        self.theta = theta
        self.lambda_s = lambda_s
        self.lambda_t = lambda_t
        self.label_smoothing = label_smoothing
        self.stage_reduction = stage_reduction
        self._require(tau > 0, 'tau', 'has to be positive')
        self._require(-1 <= theta <= 1, 'theta', 'is not a cosine, between -1 and 1')
        self._require(0 <= label_smoothing < 1, 'label_smoothing', 'has to be in [0, 1)')
        known = stage_reduction in ('sum', 'mean')
        self._require(known, 'stage_reduction', "is neither 'sum' nor 'mean'")

    def forward(
        self, sub_logits: Tensor, preds_S: Tensor, preds_T: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Return the four terms, scalars, weighted.

        Args:
            sub_logits: Before the rectification, of S stages, ``(S, N, K, C)``.
            preds_S, preds_T: Logits of student and teacher, ``(N, C)``.
            labels: Class indices ``(N,)`` or shares ``(N, C)``.
        """
        teacher = preds_T.detach()
        rectified = _rectified(sub_logits, teacher, self.lambda_s, self.lambda_t)
        stages = len(sub_logits) if self.stage_reduction == 'sum' else 1
        tau = self.tau
        target = self.target(rectified)
        terms = {
            'ce': stages * _cross_entropy(rectified, labels, self.label_smoothing),
            'kd': kl_divergence(preds_S, teacher, tau=tau).mean(),
            'sdd': stages * kl_divergence(preds_S[:, None], target, tau=tau).mean(),
            'ol': stages * orthogonality(rectified, labels, theta=self.theta).mean(),
        }
        return {name: self.loss_weight * self.weights[name] * t for name, t in terms.items()}


@in_full_precision
def _rectified(sub_logits: Tensor, preds_T: Tensor, lambda_s: float, lambda_t: float) -> Tensor:
    return lambda_s * sub_logits + lambda_t * preds_T[:, None]


@in_full_precision
def _cross_entropy(sub_logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy of sub-logits ``(S, N, K, C)``."""
    stages, _, parts, _ = sub_logits.shape
    labels = labels.repeat_interleave(parts, dim=0)
    labels = torch.cat([labels] * stages)
    return F.cross_entropy(sub_logits.flatten(0, 2), labels, label_smoothing=smoothing)
