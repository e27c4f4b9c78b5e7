"""The student's images, as the teacher wants them."""

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

    Raises:
        SetupError: If there are unknown keys, or the interpolation is unknown.
    """

    def __init__(self, cfg: dict, student: nn.Module | None, teacher: nn.Module | None) -> None:
        super().__init__()
        cfg = dict(cfg)
        self.size = cfg.pop('size', None)
        self.interpolation = cfg.pop('interpolation', 'bicubic')
        images = _normalisation(student) or ((0.0,), (1.0,))
        mean, std = _normalisation(teacher) or images
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
        return images * self.scale + self.shift if self.normalises else images


def _normalisation(preprocessor: nn.Module | None) -> tuple[list, list] | None:
    """Return mean and std of a data preprocessor, or None if it does not normalise."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return None
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()
