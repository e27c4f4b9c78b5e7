"""scikit-learn's handwritten digits: real images that need no download."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmpretrain.datasets import BaseDataset
from sklearn.datasets import load_digits

from ..errors import SetupError
from ..registry import DATASETS

_TRAIN = 1000


@DATASETS.register_module()
class Digits(BaseDataset):
    """1,797 handwritten digits of 8 x 8 pixels, enlarged, as RGB images.

    The split is fixed: the first 1,000 images are for training, the last 797
    for testing. The images come in blocks by writer, so that hardly any writer
    is in both. (Optical Recognition of Handwritten Digits, E. Alpaydin and
    C. Kaynak, UCI, 1998; :func:`sklearn.datasets.load_digits`.)

    Args:
        split: ``'train'``, ``'test'``, or ``'val'``: the training images that `num_train`
            leaves out.
        image_size: Side of the square images in pixels (bicubic enlargement).
        num_train: Number of training images, the same number of each digit,
            taken evenly over the whole training split; a multiple of 10.
            None takes all 1,000. Does not change the test split.
        pipeline: mmpretrain transforms; each sample starts with ``img``
            (uint8, ``(image_size, image_size, 3)``) and ``gt_label``.
        **kwargs: Passed on to mmpretrain's ``BaseDataset``.

    Raises:
        SetupError: If ``split`` or ``num_train`` is not one of the above.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(
        self,
        split: str = 'train',
        image_size: int = 32,
        num_train: int | None = None,
        pipeline: Sequence = (),
        **kwargs,
    ) -> None:
        if split not in ('train', 'val', 'test'):
            raise SetupError(f"Digits: split must be 'train', 'val' or 'test', not {split!r}")
        if split == 'val' and num_train is None:
            raise SetupError(
                "Digits: split='val' needs num_train: else all images are for training"
            )
        if num_train is not None and (num_train not in range(10, 981) or num_train % 10):
            raise SetupError(
                f'Digits: num_train must be a multiple of 10 from 10 to 980, not {num_train!r}'
            )
        self.split = split
        self.image_size = image_size
        self.num_train = num_train
        super().__init__(ann_file='', pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return the samples of the split."""
        digits = load_digits()
        labels = digits.target.astype(int)
        if self.split == 'test':
            chosen = np.arange(_TRAIN, len(labels))
        elif self.num_train is None:
            chosen = np.arange(_TRAIN)
        else:
            each = self.num_train // 10
            of_class = [np.flatnonzero(labels[:_TRAIN] == c) for c in range(10)]
            even = [i[np.linspace(0, len(i) - 1, each).round().astype(int)] for i in of_class]
            chosen = np.sort(np.concatenate(even))
            if self.split == 'val':
                chosen = np.setdiff1d(np.arange(_TRAIN), chosen)
        return [
            {'img': self._enlarge(digits.images[i]), 'gt_label': int(labels[i])} for i in chosen
        ]

    def _enlarge(self, image: np.ndarray) -> np.ndarray:
        size = (self.image_size, self.image_size)
        grey = cv2.resize(image * (255 / 16), size, interpolation=cv2.INTER_CUBIC)
        return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)

    def extra_repr(self) -> list[str]:
        """Describe the data in ``repr``."""
        return [f'Split: \t{self.split}', f'Image size: \t{self.image_size}']
