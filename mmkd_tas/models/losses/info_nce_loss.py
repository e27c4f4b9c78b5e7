"""InfoNCE between the features of two models."""

import math

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ...registry import MODELS
from .base import DistillLoss
from .functional import gather, info_nce

MAX_SCALE = 100.0


@MODELS.register_module()
class InfoNCELoss(DistillLoss):
    """Tell an image by its feature in the other model, among all images of the batch.

    See :func:`functional.info_nce`. The negatives are the other images of the batch
    of all processes; the gradients equal those of one process with the whole batch. With
    accumulated gradients the negatives are those of each forward alone.
    Source: Li et al., "Fuse Before Transfer", ICCV 2025.

    Args:
        tau: Temperature to begin with; its inverse, the scale, is learned.
        learnable: Whether it is.
        symmetric: Also look for the student's features with the teacher's as
            queries, and take the mean of both. The paper does not.
        loss_weight, detach_target: See :class:`DistillLoss`.

    Raises:
        SetupError: If tau is below 0.01: the scale never exceeds 100 (as in CLIP).
    """

    def __init__(
        self,
        tau: float = 0.07,
        learnable: bool = True,
        symmetric: bool = False,
        loss_weight: float = 1.0,
        detach_target: bool = True,
    ) -> None:
        super().__init__(loss_weight, detach_target)
        self.tau = tau
        self._require(tau >= 1 / MAX_SCALE, 'tau', f'has to be at least {1 / MAX_SCALE}')
        self.symmetric = symmetric
        self.log_scale = nn.Parameter(torch.tensor(-math.log(tau)), requires_grad=learnable)

    def forward(self, preds_S: Tensor, preds_T: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S: Features of the student (the queries), ``(N, D)``, or of R regions
                of each image, ``(N, R, D)``.
            preds_T: Features of the teacher (the keys), likewise.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        student, teacher = preds_S.flatten(0, -2), self.target(preds_T).flatten(0, -2)
        loss = self._one_way(student, teacher, len(preds_S))
        if self.symmetric:
            loss = (loss + self._one_way(teacher, student, len(preds_S))) / 2
        return self.loss_weight * loss

    def _one_way(self, queries: Tensor, keys: Tensor, images: int) -> Tensor:
        keys, offset = gather(keys, images)
        per_query = info_nce(queries, keys, self.log_scale.exp(), offset)
        # DDP averages as if all processes had equally many rows.
        return per_query.sum() / (len(keys) / get_world_size())
