"""Augmentations of whole batches."""

from mmpretrain.models import RandomBatchAugment
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from ..registry import BATCH_AUGMENTS


@BATCH_AUGMENTS.register_module()
class MixThenErase(RandomBatchAugment):
    """Mix the images of a batch, then erase a rectangle of some, as timm's loader does.

    mmpretrain's ``RandomErasing`` is a transform of single images, and so comes before
    they are mixed; here an erased rectangle keeps its noise, drawn from N(0, 1) for every
    pixel of the normalised image, between 2 % and 1/3 of the image.

    Args:
        augments, probs: See mmpretrain's ``RandomBatchAugment``.
        erase_prob: Probability that an image loses a rectangle.
    """

    def __init__(
        self,
        augments: dict | list[dict],
        probs: float | list[float] | None = None,
        erase_prob: float = 0.25,
    ) -> None:
        super().__init__(augments, probs)
        self.erase = RandomErasing(erase_prob, mode='pixel')

    def __call__(self, batch_input: Tensor, batch_score: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``(N, C, H, W)`` and the shares of their classes ``(N, C)``."""
        mixed, score = super().__call__(batch_input, batch_score)
        self.erase.device = mixed.device
        # timm erases in place
        return self.erase(mixed.clone()), score
