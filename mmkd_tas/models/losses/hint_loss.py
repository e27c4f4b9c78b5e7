"""The losses of FitNets and of PAT on the features of stages."""

from collections.abc import Sequence

from torch import Tensor

from ...registry import MODELS
from .base import DistillLoss
from .functional import hierarchical_context, mean_squared_error


@MODELS.register_module()
class HintLoss(DistillLoss):
    """Mean squared error between features, summed over the stages.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3; with
    several stages at once as in the tables of OFA-KD.

    Args:
        loss_weight, detach_target: See :class:`DistillLoss`.
    """

    def forward(self, preds_S: Sequence[Tensor], preds_T: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S, preds_T: Features of each stage, of equal shapes.
        """
        pairs = zip(preds_S, preds_T, strict=True)
        return self.loss_weight * sum(mean_squared_error(s, self.target(t)) for s, t in pairs)


@MODELS.register_module()
class HierarchicalContextLoss(DistillLoss):
    """Mean squared error between maps at several resolutions, summed over the stages.

    See :func:`functional.hierarchical_context`. Source: Chen et al., "Distilling Knowledge via
    Knowledge Review", CVPR 2021; for PAT, Lin et al., "Perspective-Aware Teaching", ICCV 2025.

    Args:
        loss_weight, detach_target: See :class:`DistillLoss`.
    """

    def forward(self, preds_S: Sequence[Tensor], preds_T: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar.

        Args:
            preds_S, preds_T: Maps of each stage, ``(N, C, H, W)``, of equal shapes.
        """
        pairs = zip(preds_S, preds_T, strict=True)
        return self.loss_weight * sum(hierarchical_context(s, self.target(t)) for s, t in pairs)
