"""The student's images, as the teacher wants them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SetupError

_MODES = ('nearest', 'bilinear', 'bicubic', 'area', 'nearest-exact')


class TeacherInput(nn.Module):
    """Resize and normalise a student's images for a teacher.

    Args:
        cfg: ``model.teacher_input``, see :class:`CrossArchDistill`.
        student: Data preprocessor of the student.
        teacher: The teacher's own; its normalisation holds where the config has none, and the
            student's where it has none either.
        channels: Of the teacher's images; those of a student of one channel are repeated.

    Raises:
        SetupError: If there are unknown keys, the interpolation is unknown, or mean and std are
            those of images from 0 to 1 where the student's go from 0 to 255.
    """

    def __init__(
        self,
        cfg: dict,
        student: nn.Module | None,
        teacher: nn.Module | None,
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.channels = channels
        cfg = dict(cfg)
        self.size = cfg.pop('size', None)
        self.interpolation = cfg.pop('interpolation', 'bicubic')
        images = _normalisation(student) or ((0.0,), (1.0,))
        own = _normalisation(teacher)
        if own is not None:
            _check_units('model.teacher.data_preprocessor', *own, images[1])
        _check_units('model.teacher_input', cfg.get('mean'), cfg.get('std'), images[1])
        mean, std = own or images
        mean, std = cfg.pop('mean', mean), cfg.pop('std', std)
        if cfg:
            raise SetupError(
                f'model.teacher_input: unknown keys {sorted(cfg)}; it takes size, mean, std and '
                'interpolation'
            )
        if self.interpolation not in _MODES:
            raise SetupError(
                f'model.teacher_input.interpolation: {self.interpolation!r} is none of {_MODES}'
            )
        # (x * own_std + own_mean - mean) / std, as one multiplication and addition.
        own_mean, own_std, mean, std = (
            torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (*images, mean, std)
        )
        self.register_buffer('scale', own_std / std, persistent=False)
        self.register_buffer('shift', (own_mean - mean) / std, persistent=False)
        self.normalises = bool((self.scale != 1).any() or (self.shift != 0).any())
        # All that the teacher's images depend on beside the student's pixels.
        scale, shift = self.scale.flatten().tolist(), self.shift.flatten().tolist()
        self.description = f'{images} {scale} {shift} {self.size} {self.interpolation}'

    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's images ``(N, C, H', W')`` for the student's ``(N, C, H, W)``."""
        if self.size is not None:
            filtered = self.interpolation in ('bilinear', 'bicubic')
            images = F.interpolate(images, self.size, mode=self.interpolation, antialias=filtered)
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        return images * self.scale + self.shift if self.normalises else images


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


def _normalisation(preprocessor: nn.Module | None) -> tuple[list, list] | None:
    """Return mean and std of a data preprocessor, or None if it does not normalise."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return None
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
