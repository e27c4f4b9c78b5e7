"""MMRazor's recorder for the stages of any classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from torch import Tensor, nn

from ..errors import SetupError
from ..outputs import vector_of
from ..registry import TASK_UTILS
from .dataflow import parts_of
from .trace import feature_of, pooled_of
from .view import describe, view_of

SOURCES = ('stage1', 'stage2', 'stage3', 'stage4', 'pooled', 'logits', 'labels', 'classes')


@TASK_UTILS.register_module()
class StageOutputsRecorder(ModuleOutputsRecorder):
    """Record a stage's feature, the pooled feature, the logits or the labels.

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
            raise SetupError(f'StageOutputs: source={source!r} is none of {", ".join(SOURCES)}')
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
        view = describe(model, *self.description) if given else view_of(model)
        if self.source in ('labels', 'classes'):
            hook = model.register_forward_pre_hook(self.record_labels, with_kwargs=True)
            self.handles.append(hook)
        elif self.source == 'pooled' and view.headless:
            self.handles.append(model.register_forward_hook(self.record_feature))
        elif self.source == 'pooled':
            self.dims = view.classifier_dims
            for path in view.classifiers:
                module = model.get_submodule(path)
                hook = module.register_forward_pre_hook(self.record_pooled, with_kwargs=True)
                self.handles.append(hook)
        elif self.source == 'logits':
            module = model.get_submodule(view.logits_module)
            self.arguments = len(view.trace.logits_call.inputs[0])
            self.handles.append(module.register_forward_hook(self.record_logits))
        else:
            self.stage = view.source(self.source)
            module = model.get_submodule(self.stage.module)
            self.handles.append(module.register_forward_hook(self.record_stage))

    def remove(self) -> None:
        """Take the hooks out of the model."""
        while self.handles:
            self.handles.pop().remove()

    def record_labels(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Hook: take the labels from the data samples that a model is called with."""
        if self.recording:
            samples = kwargs.get('data_samples') or next(iter(args[1:]), None)
            labels = labels_of(samples)
            if self.source == 'classes' and labels.ndim == 2:
                labels = labels.argmax(1)
            self.data_buffer.append(labels)

    def record_pooled(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Hook: take the input of a classifier."""
        if self.recording:
            self.parts.append(parts_of((args, kwargs), Tensor)[0])
            if len(self.parts) == len(self.dims):
                self.data_buffer.append(pooled_of(self.parts, self.dims))
                self.parts = []

    def record_feature(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Hook: take what a model without a head returns."""
        if self.recording:
            self.data_buffer.append(vector_of(output, headless=True))

    def record_logits(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Hook: take the logits; of a head with a margin, those without it."""
        if self.recording:
            if len(args) > self.arguments:  # the labels, for the margin
                output = module.forward(*args[: self.arguments])
            logits = output.flatten(1) if torch.is_tensor(output) else vector_of(output)
            self.data_buffer.append(logits)

    def record_stage(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Hook: take the output of a stage."""
        if self.recording:
            feature = feature_of(output)
            if feature.shape[1:] != self.stage.shape:
                raise SetupError(
                    f"'{self.stage.module}' returned {tuple(feature.shape[1:])} for an image and "
                    f'{self.stage.shape} when the model was built: set model.input_size (teacher: '
                    'model.teacher_input.size) to the size of the images'
                )
            if self.layout == 'NCHW':
                feature = self.stage.to_map(feature)
            self.data_buffer.append(feature)

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
