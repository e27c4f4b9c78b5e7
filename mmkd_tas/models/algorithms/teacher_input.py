"""The student's images, as the teacher wants them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor, nn

from ...errors import SetupError
from ...records import OWN, ImageRecord, normalisation

# Mean and std of images from 0 to 1.
_USUAL = {
    "ImageNet's": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    'mean = std = 0.5': (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    "CLIP's": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    'from 0 to 1': ([0.0] * 3, [1.0] * 3),
}
_KEYS = ('mean', 'std', 'size')
_MODES = ('nearest', 'bilinear', 'bicubic', 'area', 'nearest-exact')


class TeacherInput(nn.Module):
    """Resize and normalise a student's images for a teacher.

    Args:
        cfg: ``model.teacher_input``, see :class:`CrossArchDistill`.
        student: Data preprocessor of the student.
        records: Of the teacher's images. Of what the config does not say, the first that
            says it holds, and else the student's images are also the teacher's.
        channels: Of the teacher's images; those of a student of one channel are repeated.
        input_size: ``(H, W)`` of the student's images.

    Raises:
        SetupError: If there are unknown keys, the interpolation is unknown, or mean and std are
            those of images from 0 to 1 where the student's go from 0 to 255.
    """

    def __init__(
        self,
        cfg: dict,
        student: nn.Module | None,
        records: Sequence[ImageRecord] = (),
        channels: int = 1,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        cfg = dict(cfg)
        self.interpolation = cfg.pop('interpolation', 'bicubic')
        self._images = normalisation(student) or ((0.0,), (1.0,))
        units = 1 / 255 if min(self._images[1]) < 1 else 1  # the student's images go from 0 to 1
        _check_units('model.teacher_input', cfg.get('mean'), cfg.get('std'), self._images[1])
        given = ImageRecord('model.teacher_input', *(cfg.pop(k, None) for k in _KEYS))
        if cfg:
            raise SetupError(
                f'model.teacher_input: unknown keys {sorted(cfg)}; it takes size, mean, std and '
                'interpolation'
            )
        if self.interpolation not in _MODES:
            raise SetupError(
                f'model.teacher_input.interpolation: {self.interpolation!r} is not one of {_MODES}'
            )
        for record in records:
            if record.source == OWN:
                _check_units('model.teacher.data_preprocessor', *record[1:3], self._images[1])
        if normalisation(student) is None:  # it is not known how the images were normalised
            records = [
                record if record.source == OWN else record._replace(mean=None, std=None, bgr=False)
                for record in records
            ]
        records = [
            given,
            *(_in_units(record, units, channels) for record in records),
            ImageRecord("the student's images", *self._images, input_size),
        ]
        used = {
            key: next((r for r in records if getattr(r, key) is not None), records[-1])
            for key in _KEYS
        }
        size = _pair(used['size'].size)
        self.size = None if size == _pair(input_size) else size  # there is nothing to resize
        self.bgr = next((r.bgr for r in records[1:] if r.mean is not None), False)
        self._normalise_by(used['mean'].mean, used['std'].std)
        self.report = (
            f'teacher sees {" x ".join(map(str, dict.fromkeys(size or ("any",))))} px, '
            f'mean {_listed(self.mean)}, std {_listed(self.std)} ({_sources(used)})'
        )

    def _normalise_by(self, mean: Any, std: Any) -> None:
        # (x * own_std + own_mean - mean) / std, as one multiplication and addition.
        own_mean, own_std, mean, std = (
            torch.as_tensor(v, dtype=torch.float32).view(-1, 1, 1)
            for v in (*self._images, mean, std)
        )
        self.mean, self.std = mean.flatten().tolist(), std.flatten().tolist()
        self.register_buffer('scale', own_std / std, persistent=False)
        self.register_buffer('shift', (own_mean - mean) / std, persistent=False)
        self.normalises = bool((self.scale != 1).any() or (self.shift != 0).any())

    @property
    def description(self) -> str:
        """All that the teacher's images depend on beside the student's pixels."""
        scale, shift = self.scale.flatten().tolist(), self.shift.flatten().tolist()
        order = ' bgr' * self.bgr
        return f'{self._images} {scale} {shift} {self.size} {self.interpolation}{order}'

    def others(self) -> dict[str, 'TeacherInput']:
        """Return the usual normalisations that differ from this one, by name."""
        units = 255 if max(self.std) > 1 else 1
        usual = {name: [[units * x for x in v] for v in pair] for name, pair in _USUAL.items()}
        usual["the student's"] = [[*v] for v in self._images]
        found = {}
        for name, (mean, std) in usual.items():
            other = copy.deepcopy(self)
            other._normalise_by(mean, std)
            other.to(self.scale)
            known = [self, *found.values()]
            if other.shift.shape[0] in (1, self.channels) and not any(map(other._equals, known)):
                found[name] = other
        return found

    def _equals(self, other: 'TeacherInput') -> bool:
        pairs = (self.scale, other.scale), (self.shift, other.shift)
        return all(bool((a - b).abs().max() < 1e-2) for a, b in pairs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's images ``(N, C, H', W')`` for the student's ``(N, C, H, W)``."""
        if self.size is not None:
            filtered = self.interpolation in ('bilinear', 'bicubic')
            images = F.interpolate(images, self.size, mode=self.interpolation, antialias=filtered)
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        images = images * self.scale + self.shift if self.normalises else images
        return images.flip(1) if self.bgr else images


def _in_units(record: ImageRecord, units: float, channels: int) -> ImageRecord:
    """Return a record for images of other units or channels."""
    values = {}
    for key in ('mean', 'std'):
        numbers = getattr(record, key)
        if numbers is not None and record.source != OWN:
            numbers = [units * x for x in numbers]
        if numbers is not None and len(numbers) not in (1, channels):
            numbers = [sum(numbers) / len(numbers)] if channels == 1 else None
        values[key] = numbers
    return record._replace(**values)


def _pair(size: Any) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size and tuple(size)


def _sources(used: dict[str, ImageRecord]) -> str:
    keys: dict[str, list[str]] = {}
    for key, record in used.items():
        keys.setdefault(record.source, []).append(key)
    if len(keys) == 1:
        return f'from {next(iter(keys))}'
    return ', '.join(f'{" and ".join(names)} from {source}' for source, names in keys.items())


def _listed(values: Sequence[float]) -> str:
    values = values[:1] if len(set(values)) == 1 else values
    numbers = ', '.join(f'{value:.4g}' for value in values)
    return f'({numbers})' if len(values) > 1 else numbers


def _check_units(key: str, mean: Any, std: Any, own_std: Sequence[float]) -> None:
    """Refuse a mean and std of images from 0 to 1, as timm declares them."""
    values = {
        name: torch.as_tensor(v, dtype=torch.float64).view(-1)
        for name, v in (('mean', mean), ('std', std))
        if v is not None
    }
    mean, std = values.get('mean', torch.zeros(1)), values.get('std', torch.full((1,), 255.0))
    if min(own_std) < 1:  # the student's images go from 0 to 1, too
        return
    if (std <= 1).any() or ((mean > 0) & (mean < 1)).any():
        found = ', '.join(f'{name}={v.tolist()}' for name, v in values.items())
        pixels = {name: v * 255 if (v <= 1).all() else v for name, v in values.items()}
        instead = ', '.join(
            f'{name}={[round(x, 3) for x in v.tolist()]}' for name, v in pixels.items()
        )
        raise SetupError(
            f'{key}: {found} is of images from 0 to 1, and these go from 0 to 255; write {instead}'
        )
