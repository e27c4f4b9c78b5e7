"""MMRazor's recorder for the stages of any classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import Tensor, nn

from ..errors import SetupError
from ..outputs import pooled_of, vector_of
from ..registry import TASK_UTILS
from .dataflow import parts_of
from .trace import feature_of
from .view import OF_IMAGES, describe, view_of

SOURCES = ('stage1', 'stage2', 'stage3', 'stage4', 'pooled', 'logits', *OF_IMAGES)


@TASK_UTILS.register_module()
class StageOutputsRecorder(ModuleOutputsRecorder):
    """Record a stage's feature, the pooled feature, the logits, or what comes with the images.

    In a config it is called ``mmkd_tas.StageOutputs``, for student and teacher
    alike, whatever they are:

    >>> student_recorders = dict(feat=dict(type='mmkd_tas.StageOutputs', source='stage3'))

    ========== =================================================================
    source     record
    ========== =================================================================
    stage1..   feature at the end of the stage, ``(N, C, H, W)`` without prefix tokens,
               or, with ``layout='raw'``, as the model has it
    pooled     final feature after pooling, ``(N, D)``: the input of the classifier
    logits     ``(N, C)``
    labels     ``(N,)`` class indices, or ``(N, C)`` shares where mixup or cutmix gave
               the images several
    classes    ``(N,)`` class indices, that with the largest share
    indices    ``(N,)`` indices of the images in their data set
    ========== =================================================================

    Args:
        source: One of the above.
        layout: ``'NCHW'`` or ``'raw'``, for the stages.
        input_size, stages: See :class:`ModelView`; in :class:`CrossArchDistill`
            they are arguments of the algorithm.
    """

    def __init__(
        self,
        source: str,
        layout: str = 'NCHW',
        input_size: int | tuple[int, int] | None = None,
        stages: Sequence[str | dict] | None = None,
    ) -> None:
        super().__init__(source)
        if not source.startswith('stage') and source not in SOURCES:
            raise SetupError(f'StageOutputs: source={source!r} is not one of {", ".join(SOURCES)}')
        if layout not in ('NCHW', 'raw'):
            raise SetupError(f"StageOutputs: layout={layout!r} is neither 'NCHW' nor 'raw'")
        self.layout = layout
        self.description = (input_size, stages)
        self.handles: list = []
        self.stage = None
        self.parts: list[Tensor] = []

    def prepare_from_model(self, model: nn.Module | None = None) -> None:
        """Find the source in a model, and watch it."""
        given = any(value is not None for value in self.description)
        self.view = describe(model, *self.description) if given else view_of(model)
        place = self.view.source(self.source)
        paths = [place.module if place else '']
        if self.source == 'pooled' and self.view.classifiers:
            paths = self.view.classifiers
        if self.source in SOURCES[4:]:
            self.take = getattr(self, self.source)
        else:
            self.take, self.stage = self.feature, place
        for path in paths:
            module = model.get_submodule(path)
            self.handles.append(module.register_forward_hook(self.record, with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks out of the model."""
        while self.handles:
            self.handles.pop().remove()

    def record(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """Hook: record what is taken from a call of a module."""
        if self.recording and (taken := self.take(module, args, kwargs, output)) is not None:
            self.data_buffer.append(taken)

    def labels(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor:
        """Take the labels from the data samples that a model is called with."""
        return labels_of(_samples(args, kwargs))

    def classes(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor:
        """Take the labels, of shares the largest."""
        labels = labels_of(_samples(args, kwargs))
        return labels.argmax(1) if labels.ndim == 2 else labels

    def indices(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor:
        """Take the indices from the data samples."""
        samples = _samples(args, kwargs)
        if any('sample_idx' not in sample for sample in samples):
            raise SetupError(
                'indices: the data samples have no sample_idx, the place of an image in its data '
                "set: keep it among the meta_keys of the pipeline's PackInputs (in a plain loop: "
                'kd(images, labels, indices))'
            )
        return torch.tensor([sample.sample_idx for sample in samples])

    def pooled(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor | None:
        """Take the input of the last classifier, or what a model without one returns."""
        if self.view.trace.headless:
            return vector_of(output, headless=True)
        self.parts.append(parts_of((args, kwargs), Tensor)[0])
        if len(self.parts) < len(self.view.classifiers):
            return None
        parts, self.parts = self.parts, []
        return pooled_of(parts, [dim for _, dim in self.view.trace.classifiers])

    def logits(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor:
        """Take the logits; of a head with a margin, those without it."""
        expected = len(self.view.trace.logits_call.inputs[0])
        if len(args) > expected:  # the labels, for the margin
            output = module.forward(*args[:expected])
        return output.flatten(1) if torch.is_tensor(output) else vector_of(output)

    def feature(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor:
        """Take the output of a stage."""
        feature, stage = feature_of(output), self.stage
        if feature.shape[1:] != stage.shape:
            raise SetupError(
                f"'{stage.module}' returned {tuple(feature.shape[1:])} for an image and "
                f'{stage.shape} when the model was built: set model.input_size (teacher: '
                'model.teacher_input.size) to the size of the images'
            )
        return stage.to_map(feature) if self.layout == 'NCHW' else feature

    def get_record_data(self, record_idx: int = -1, data_idx: int | None = None) -> Any:
        """Return what was recorded: by default the latest, where a module runs repeatedly."""
        if not self.data_buffer:
            raise SetupError(
                f"StageOutputs: the model ran without passing '{self.source}'; is its head one "
                'that makes the loss from other logits?'
            )
        return super().get_record_data(record_idx, data_idx)


def labels_of(data_samples: list) -> Tensor:
    """Return the labels of data samples: ``(N,)`` indices or ``(N, C)`` shares."""
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])


def _samples(args: tuple, kwargs: dict) -> list:
    return kwargs.get('data_samples') or next(iter(args[1:]), None)
