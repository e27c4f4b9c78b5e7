"""What the losses of this package have in common."""

from torch import Tensor, nn

from ...errors import SetupError


class DistillLoss(nn.Module):
    """A loss of tensors, with a weight.

    Args:
        loss_weight: Factor of the loss.
        detach_target: No gradients flow into what is learned from (``preds_T``). A
            frozen teacher has none anyway; for an assistant it is a choice.
    """

    def __init__(self, loss_weight: float = 1.0, detach_target: bool = True) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.detach_target = detach_target

    def target(self, tensor: Tensor) -> Tensor:
        """Return what is learned from, with or without its gradients."""
        return tensor.detach() if self.detach_target else tensor

    def _require(self, satisfied: bool, argument: str, wanted: str) -> None:
        """Stop when an argument is not what it should be."""
        if not satisfied:
            raise SetupError(
                f'{type(self).__name__}: {argument}={getattr(self, argument)!r} {wanted}'
            )
