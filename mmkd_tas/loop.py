"""Distillation in your own training loop, without configs and without a runner."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .configs import method_config
from .errors import SetupError
from .models import Classifier, CrossArchDistill
from .models.algorithms.cross_arch_distill import WITHOUT_LABELS
from .outputs import num_classes
from .records import normalisation
from .registry import MODELS


def distil(
    student: nn.Module | dict,
    teacher: nn.Module | dict,
    method: str | Mapping = 'tas',
    input_size: int | tuple[int, int] | None = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> 'Distillation':
    """Return the distillation of a teacher into a student, for a plain training loop.

    >>> kd = mmkd_tas.distil(student, teacher, method='tas', input_size=224)
    >>> optimizer = torch.optim.AdamW(kd.parameters(), 1e-3)
    >>> for images, labels in loader:
    ...     losses = kd(images, labels)
    ...     sum(losses.values()).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> torch.save(kd.student.state_dict(), 'student.pth')

    Args:
        student, teacher: Modules that return logits ``(N, C)`` of images, see
            :class:`Classifier`, with the weights to start from; or their configs. A teacher
            without a head is ``Classifier(teacher, num_classes=0)``. The teacher is frozen.
        method: A file of ``configs/_base_/methods``, or the config of a distiller.
        input_size: Side or ``(H, W)`` of the images in pixels, by default what the student
            was built for, if it says so, else 224.
        criterion: ``criterion(logits, labels)``, the student's own loss; by default that of
            its own head, if it is a classifier of MMPretrain, else the cross-entropy.
        kwargs: Of :class:`CrossArchDistill`: ``calculate_student_loss=False`` for images
            without labels, ``student_stages``, ``teacher_input``, ``student_compile``, ... The
            teacher sees the images that the student sees, in the size that it was built or
            trained for. Where it wants them normalised otherwise, say what they have been
            normalised with: ``data_preprocessor=dict(mean=..., std=...)``, as a rule of images
            from 0 to 1. Then the teacher's record decides, or ``teacher_input``.

    Raises:
        SetupError: If the two models, the method and the arguments do not go together.
    """
    distiller = method_config(method) if isinstance(method, str) else method
    if not isinstance(distiller, Mapping) or 'type' not in distiller:
        raise SetupError(
            f"method: {_shown(method)} is neither the name of a method, such as 'tas', nor the "
            "config of a distiller, dict(type='mmkd_tas.StageDistiller', ...)"
        )
    if distiller.get('loss_schedules'):
        raise SetupError(
            'method: loss_schedules count the epochs of a runner, and a plain loop has none; leave '
            'them out, and multiply the losses that change in the loop'
        )
    _check_devices(student=student, teacher=teacher)
    student = _as_classifier('student', student, criterion)
    teacher = _as_classifier('teacher', teacher)
    unknown = normalisation(getattr(student, 'data_preprocessor', None)) is None
    if unknown and kwargs.get('data_preprocessor') is None and not isinstance(teacher, _Wrapped):
        # Nobody says what the images were normalised with: so it takes them as they are.
        teacher = _Wrapped(teacher, num_classes=num_classes(teacher))
    algorithm = CrossArchDistill(student, teacher, dict(distiller), input_size=input_size, **kwargs)
    return Distillation(algorithm).to(device_of(student))


class Distillation(nn.Module):
    """A :class:`CrossArchDistill` that is called with images and labels.

    Its parameters and its ``state_dict()`` are those of the student and of what helps in
    training only; the teacher moves along with it (``kd.to(device)``), and is in neither. What
    can be compiled are the models (``torch.compile(student)``, ``student_compile=True``), not
    the whole.

    Args:
        algorithm: The distillation, as in a run from a config.
    """

    def __init__(self, algorithm: CrossArchDistill) -> None:
        super().__init__()
        self.algorithm = algorithm

    @property
    def student(self) -> nn.Module:
        """The student, as it was given."""
        student = self.algorithm.student
        return student.model if isinstance(student, _Wrapped) else student

    @property
    def teacher(self) -> nn.Module:
        """The teacher, as it was given."""
        teacher = self.algorithm.teacher
        return teacher.model if isinstance(teacher, _Wrapped) else teacher

    @torch.compiler.disable
    def forward(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of a batch, whose sum is to be minimised.

        Args:
            images: As the student takes them, ``(N, C, H, W)``.
            labels: Class indices ``(N,)``, or shares of the classes ``(N, C)`` (mixup, CutMix).
                Not needed where neither the student's own loss nor the method takes them.
            indices: Of the images in the training data, ``(N,)``, for CRD.

        Returns:
            ``student.*`` and ``distill.*`` terms, scalars.

        Raises:
            SetupError: If labels are missing or have another form, or something is on another
                device.
        """
        algorithm = self.algorithm
        _check_devices(
            images=images,
            student=algorithm.student,
            teacher=algorithm.teacher,
            **{'the modules of the method': algorithm.distiller},
        )
        samples = _samples(len(images), labels, indices)
        if labels is None and (readers := algorithm.label_readers):
            raise SetupError(
                f'labels are missing, which are needed by {", ".join(readers)}: give them, or '
                f'build with {WITHOUT_LABELS}'
            )
        _, terms = algorithm.parse_losses(algorithm(images, samples, mode='loss'))
        return {name: term for name, term in terms.items() if 'loss' in name and name != 'loss'}


class _Wrapped(Classifier):
    """A classifier around a module that the caller knows without it."""


class _Criterion(nn.Module):
    """A loss of logits and labels, called as MMPretrain's heads call theirs."""

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, target: Tensor, avg_factor: int | None = None) -> Tensor:
        """Return the loss."""
        return self.criterion(logits, target)


def _as_classifier(
    role: str, model: nn.Module | dict, criterion: Callable | None = None
) -> BaseModel:
    """Return a model that is called as MMPretrain's classifiers are."""
    if isinstance(model, Mapping):
        model = MODELS.build(dict(model))
    if not isinstance(model, nn.Module):
        raise SetupError(
            f'{role}: {_shown(model)} is not a module; give one that returns logits (N, C)'
        )
    if criterion is None:
        return model if isinstance(model, BaseModel) else _Wrapped(model)
    if not callable(criterion):
        raise SetupError(
            f'criterion: {_shown(criterion)} cannot be called; give a function of logits and labels'
        )
    own = model.data_preprocessor if isinstance(model, BaseModel) else None
    return _Wrapped(model, loss=_Criterion(criterion), data_preprocessor=own)


def _samples(images: int, labels: Tensor | None, indices: Tensor | None) -> list[DataSample]:
    """Return what MMPretrain's models know of the images of a batch."""
    samples = [DataSample() for _ in range(images)]
    if labels is not None:
        if not torch.is_tensor(labels) or labels.ndim not in (1, 2) or len(labels) != images:
            raise SetupError(
                f'labels: {_shown(labels)} is neither indices (N,) nor shares (N, C) of N={images} '
                'images'
            )
        if labels.is_floating_point() != (labels.ndim == 2):
            raise SetupError(
                f'labels: {_shown(labels)} of {labels.dtype}; class indices (N,) are integers, and '
                'shares of the classes (N, C) are floating-point numbers'
            )
        # Without a look at the numbers, for which a GPU would have to wait.
        name, parts = ('gt_score', labels) if labels.ndim == 2 else ('gt_label', labels.split(1))
        for sample, part in zip(samples, parts, strict=True):
            sample.set_field(part, name, dtype=Tensor)
    if indices is not None:
        if len(indices) != images:
            raise SetupError(f'indices: there are {len(indices)} for {images} images')
        for sample, index in zip(samples, torch.as_tensor(indices).tolist(), strict=True):
            sample.set_metainfo(dict(sample_idx=index))
    return samples


def device_of(part: Any) -> torch.device | None:
    """Return where a tensor, or the first parameter of a module, is."""
    if isinstance(part, nn.Module):
        part = next(part.parameters(), None)
    return getattr(part, 'device', None)


def _check_devices(**parts: Any) -> None:
    found = {name: device for name, part in parts.items() if (device := device_of(part))}
    if len({*found.values()}) > 1:
        listed = ', '.join(f'{name} on {device}' for name, device in found.items())
        raise SetupError(
            f'{listed}: move student and teacher to one device before distil(), or later both at '
            'once with kd.to(device), and the images with them'
        )


def _shown(value: Any) -> str:
    if torch.is_tensor(value):
        return f'a tensor {tuple(value.shape)}'
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
