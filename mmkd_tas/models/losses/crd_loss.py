"""Contrastive representation distillation, with a memory of all images."""

import math

import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import broadcast, get_world_size
from torch import Tensor, nn

from ...compat import sent
from ...errors import SetupError
from ...registry import MODELS
from .base import DistillLoss
from .functional import class_indices, crd_log_partition, crd_loss, gather, unit_vectors


@MODELS.register_module()
class CRDLoss(DistillLoss):
    r"""Tell an image by its feature in the other model, among many images of the data set.

    See :func:`functional.crd_loss`. What both models said of every image is remembered:
    :math:`v \leftarrow \mathrm{normalise}(\mu v + (1 - \mu) f)` after every step, on all
    processes for the images of all. The negatives are drawn from the memory with a seed that
    is the number of the step; they are the same for the whole batch, and those of an image's
    own class do not count for it. So the gradients of several processes equal those of one
    with the whole batch, and a resumed run goes on exactly: the memory is in the checkpoints
    (1 KB for an image and a width of 128). Z is set in the first step, as in the authors'
    code. Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020; its code
    draws negatives for each image.

    Args:
        width: D, of the features.
        num_images: M, of the training data; by default the :class:`EpochSeedHook` tells it.
        num_negatives: K.
        tau: Temperature.
        momentum: :math:`\mu`, from 0 up to 1.
        loss_weight: Factor of the loss.

    Raises:
        SetupError: If an argument is out of its range, or is not what data and features say.
    """

    def __init__(
        self,
        width: int = 128,
        num_images: int | None = None,
        num_negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight, detach_target=False)
        self.width = width
        self.num_images = num_images
        self.num_negatives = num_negatives
        self.tau = tau
        self.momentum = momentum
        self._require(width >= 1, 'width', 'has to be at least 1')
        self._require(num_images is None or num_images >= 2, 'num_images', 'has to be at least 2')
        self._require(num_negatives >= 1, 'num_negatives', 'has to be at least 1')
        self._require(tau > 0, 'tau', 'has to be positive')
        self._require(0 <= momentum < 1, 'momentum', 'has to be in [0, 1)')
        # Of the student and of the teacher.
        self.register_buffer('memory', torch.empty(2, 0, width))
        self.register_buffer('classes', torch.empty(0, dtype=torch.int64))
        self.register_buffer('log_partition', torch.zeros(2))
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))
        self._steps = 0  # the same number, without waiting for a device
        if num_images is not None:
            self.remember(num_images)

    def remember(self, images: int) -> None:
        """Make room for so many images: random directions, of no class."""
        if self.num_images not in (None, images):
            raise SetupError(
                f'CRDLoss: num_images={self.num_images}, and the training data have {images} '
                'images: leave it out'
            )
        if len(self.classes) == images:
            return
        self.num_images = images
        bound = math.sqrt(3 / self.width)
        # A generator of its own: the models begin as they do with any other method.
        generator = torch.Generator().manual_seed(torch.initial_seed())
        memory = torch.empty(2, images, self.width).uniform_(-bound, bound, generator=generator)
        self.memory = memory.to(self.memory)
        broadcast(self.memory)
        self.classes = self.classes.new_full((images,), -1)

    def forward(
        self, preds_S: Tensor, preds_T: Tensor, indices: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar, and remember the features.

        Args:
            preds_S, preds_T: Features of student and teacher, ``(N, D)``.
            indices: Of the images in the training data, ``(N,)``.
            labels: Class indices ``(N,)`` or shares ``(N, C)``; without, the other images of
                an image's class count as negatives, too.
        """
        self._check(preds_S)
        indices = sent(indices, preds_S.device)
        anchors = unit_vectors(torch.stack([preds_S, preds_T]))
        classes = indices.new_full(indices.shape, -1) if labels is None else class_indices(labels)
        # Of all processes, in the order of the processes.
        seen, _ = gather(anchors.detach().transpose(0, 1), len(preds_S))
        images, _ = gather(torch.stack([indices, classes], dim=1), len(preds_S))
        keys = dict(images=self.num_images, tau=self.tau)
        if self._steps == 0:
            parts = self._contrasted(seen.transpose(0, 1), *images.unbind(1))
            self.log_partition.copy_(crd_log_partition(*parts, **keys))
        parts = self._contrasted(anchors, indices, classes)
        per_image = crd_loss(*parts, log_partition=self.log_partition, **keys)
        if self.training:
            self._update(seen.transpose(0, 1), *images.unbind(1))
        # DDP averages as if all processes had equally many rows.
        return self.loss_weight * per_image.sum() / (len(seen) / get_world_size())

    def _check(self, feature: Tensor) -> None:
        if self.num_images is None:
            raise SetupError(
                'CRDLoss: num_images is not known, for which there is the EpochSeedHook: do not '
                'switch default_hooks.epoch_seed off, or give '
                'distiller.distill_losses.NAME.num_images'
            )
        if feature.shape[1] != self.width:
            raise SetupError(
                f'CRDLoss: width={self.width}, and the features have {feature.shape[1]} channels: '
                'give both the same width'
            )

    def _contrasted(
        self, anchors: Tensor, indices: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return anchors, positives, negatives, and which of these differ from an image."""
        generator = torch.Generator().manual_seed(self._steps)
        drawn = torch.randint(self.num_images, (self.num_negatives,), generator=generator)
        drawn = sent(drawn, indices.device)
        # Each side is compared with what the other said.
        positives, negatives = (
            self.memory[:, places].flip(0).to(anchors.dtype) for places in (indices, drawn)
        )
        alike = (self.classes[drawn] == classes[:, None]) & (classes[:, None] >= 0)
        different = ~alike & (drawn != indices[:, None])
        return anchors, positives, negatives, different

    @torch.no_grad()
    def _update(self, features: Tensor, indices: Tensor, classes: Tensor) -> None:
        # Of an image that is there twice the last counts, whatever the order of writing.
        same = indices[:, None] == indices
        last = (same * torch.arange(len(indices), device=indices.device)).amax(1)
        old = self.memory[:, indices]
        new = unit_vectors(self.momentum * old + (1 - self.momentum) * features[:, last])
        new = torch.where(new.isfinite().all(-1, keepdim=True), new.to(old.dtype), old)
        self.memory[:, indices] = new
        self.classes[indices] = classes[last]
        self.steps += 1
        self._steps += 1

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # Where the data are not known, as in a test of the student, what was saved is.
        saved = state_dict.get(f'{prefix}memory')
        if saved is not None and self.num_images is None:
            self.remember(saved.shape[1])
        self._steps = int(state_dict.get(f'{prefix}steps', self._steps))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def remember_images(model: nn.Module, dataset: BaseDataset) -> None:
    """Make room for the images of a data set, where a model has a :class:`CRDLoss`.

    Raises:
        SetupError: If the data set is not mmpretrain's, whose samples know their index.
    """
    for loss in model.modules():
        if isinstance(loss, CRDLoss):
            if not isinstance(dataset, BaseDataset):
                raise SetupError(
                    'CRDLoss needs one data set of mmpretrain, whose images have an index, and '
                    f'train_dataloader.dataset is a {type(dataset).__name__}: change it, or use '
                    'another method'
                )
            loss.remember(len(dataset))
