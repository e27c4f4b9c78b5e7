"""CIFAR-100 in its official format: read safely, with a validation split and subsets."""

import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import CIFAR100_CATEGORIES

from ..errors import SetupError
from ..explain import told
from ..registry import DATASETS

_VAL = 5000


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and plain data, and calls nothing else."""

    # NumPy 2 renamed its private package.
    allowed = {
        f'{package}.{name}': found
        for package in ('numpy', 'numpy.core.multiarray', 'numpy._core.multiarray')
        for name, found in (
            ('ndarray', np.ndarray),
            ('dtype', np.dtype),
            ('_reconstruct', np.ndarray(0).__reduce__()[0]),
        )
    }

    def find_class(self, module: str, name: str) -> Any:
        if f'{module}.{name}' not in self.allowed:
            raise pickle.UnpicklingError(f'it wants to call {module}.{name}')
        return self.allowed[f'{module}.{name}']


@DATASETS.register_module()
class CIFAR100Split(BaseDataset):
    """CIFAR-100, with a validation split cut from the training images.

    The images are put in the order of the checksum (CRC-32) of their pixels, so that
    a split does not depend on the order in the files. Krizhevsky, "Learning Multiple
    Layers of Features from Tiny Images", 2009.

    Args:
        data_root: Holds the unpacked official archive, ``cifar-100-python/``.
        split: ``'train'``, ``'test'``, or ``'val'``: the last 5,000 training images.
        num_train: Of the split ``'train'``, take the first so many. With at most
            45,000 it has no image in common with ``'val'``.
        num_classes: Take the images of the first so many classes alone; they are in
            alphabetical order.
        pipeline: mmpretrain transforms; each sample starts with ``img`` (uint8 RGB,
            ``(32, 32, 3)``) and ``gt_label``.
        **kwargs: Passed on to mmpretrain's ``BaseDataset``.

    Raises:
        SetupError: If an argument is not one of the above, or the files are missing or
            not those of CIFAR-100.
    """

    def __init__(
        self,
        data_root: str = 'data/cifar100',
        split: str = 'train',
        num_train: int | None = None,
        num_classes: int = 100,
        pipeline: Sequence = (),
        **kwargs,
    ) -> None:
        if split not in ('train', 'val', 'test'):
            raise SetupError(f"CIFAR100Split: split={split!r} is not one of 'train', 'val', 'test'")
        if num_train is not None and num_train not in range(1, 50001):
            raise SetupError(f'CIFAR100Split: num_train={num_train!r} is not between 1 and 50000')
        if num_classes not in range(2, 101):
            raise SetupError(f'CIFAR100Split: num_classes={num_classes!r} is not between 2 and 100')
        self.split = split
        self.num_train = num_train
        self.num_classes = num_classes
        metainfo = {'classes': CIFAR100_CATEGORIES[:num_classes]}
        super().__init__(
            ann_file='', metainfo=metainfo, data_root=data_root, pipeline=pipeline, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """Return the samples of the split."""
        images, labels = self._read('test' if self.split == 'test' else 'train')
        order = sorted(range(len(images)), key=lambda i: (zlib.crc32(images[i]), i))
        if self.split == 'val':
            order = order[-_VAL:]
        elif self.split == 'train':
            order = order[: self.num_train]
        order = [i for i in order if labels[i] < self.num_classes]
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return [{'img': np.ascontiguousarray(images[i]), 'gt_label': int(labels[i])} for i in order]

    def _read(self, name: str) -> tuple[np.ndarray, list[int]]:
        path = Path(self.data_root) / 'cifar-100-python' / name
        if not path.is_file():
            raise SetupError(
                f"dataset.data_root: '{path}' does not exist: unpack the official archive "
                f"cifar-100-python.tar.gz in '{self.data_root}', or set dataset.data_root of the "
                'loaders to where it is'
            )
        with told('CIFAR-100', path=path), open(path, 'rb') as file:
            entry = _ArraysOnly(file, encoding='latin1').load()
            images, labels = np.asarray(entry['data']), list(entry['fine_labels'])
        if images.dtype != np.uint8 or images.shape != (len(labels), 3072):
            raise SetupError(f"'{path}' is not a file of CIFAR-100: its images are {images.shape}")
        return images, labels

    def extra_repr(self) -> list[str]:
        """Describe the data in ``repr``."""
        return [f'Split: \t{self.split}']
