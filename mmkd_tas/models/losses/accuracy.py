"""Accuracy of logits during training."""

import torch
from mmpretrain.evaluation import Accuracy
from torch import Tensor, nn

from ...registry import MODELS
from .functional import class_indices


@MODELS.register_module()
class LogitAccuracy(nn.Module):
    """Top-1 accuracy of any logits on the training batch, percent: for the log, no loss.

    Name it without ``loss`` in ``distill_losses``, so that mmengine only logs it.
    """

    @torch.no_grad()
    def forward(self, preds: Tensor, labels: Tensor) -> Tensor:
        """Return the percentage of images whose largest logit is that of their class.

        Args:
            preds: Logits, ``(N, C)``.
            labels: Class indices ``(N,)``, or shares ``(N, C)`` of which the largest counts.
        """
        # without a threshold: by default a right prediction below 0 does not count
        return Accuracy.calculate(preds, class_indices(labels), topk=(1,), thrs=(None,))[0][0]
