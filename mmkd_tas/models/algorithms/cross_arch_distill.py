"""Distillation from a frozen teacher of any architecture."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.task_modules.recorder import ModuleOutputsRecorder
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from ...checkpoint import load_weights
from ...compat import SAFETY_HOOKS, apply, sent
from ...configs import set_num_classes
from ...errors import SetupError
from ...outputs import built_for
from ...records import ImageRecord, records_of
from ...registry import MODELS
from ...stages import StageOutputsRecorder, describe, view_of
from ..classifier import Classifier
from ..distillers.stage_distiller import Reference
from ..losses.functional import images_of_step
from ..utils import classes_of, count_parameters
from .teacher_cache import TeacherCache
from .teacher_input import TeacherInput

# What goes with images that have no labels.
WITHOUT_LABELS = (
    'calculate_student_loss=False and a method without labels (rsd, fitnet, rkd, cc, kd-features; '
    'from a teacher with a head also kd, dist)'
)


@MODELS.register_module()
class CrossArchDistill(SingleTeacherDistill):
    """Train a student with the help of a frozen teacher.

    MMRazor's ``SingleTeacherDistill``, of which it accepts every distiller, with
    these differences:

    - The teacher is frozen and wholly in eval mode, also after ``train()``:
      dropout, drop-path and every kind of normalisation. (MMRazor switches only
      BatchNorm.)
    - It runs forward once per step, without its loss and without gradients.
    - It may see the images at another resolution or normalisation.
    - Its checkpoint must fit, key by key.
    - It is no submodule: ``state_dict()``, ``parameters()``, the optimizer and
      DDP hold the student and the distiller's own modules only.
    - The algorithm brings the hooks that keep a training safe (``default_hooks``) to any
      runner, whatever the config's ``custom_hooks``. A hook of the same type takes the place
      of each; ``default_hooks=dict(finite_loss=None)`` does without.

    Args:
        architecture: The student: a classifier, any other module that makes logits of
            images (see :class:`Classifier`), or the config of one. Where the config does
            not say its number of classes, it is that of ``data_preprocessor``.
        teacher: The teacher, likewise. For methods that take none of its logits it may have
            other classes, or none (``num_classes=0``). One that is built keeps its weights.
        distiller: Config of the distiller.
        teacher_ckpt: Checkpoint of the teacher: a file of mmengine, timm, a bare
            state dict, safetensors, an address mmengine can load from, or the work dir
            of a run, whose newest checkpoint is meant. Without, the teacher's config must
            ask for weights itself (``pretrained=``, ``init_cfg=``).
        student_ckpt: Checkpoint that the student starts from, likewise. A head for another
            number of classes is newly initialised; everything else must fit.
        random_teacher: Accept a teacher without weights, or one no better than chance.
        teacher_input: What the teacher's images differ in: ``size`` (pixels, int
            or ``(h, w)``), ``mean`` and ``std`` (of 0..255 pixels, per channel, as
            in mmpretrain's ``data_preprocessor``) and ``interpolation`` (a mode of
            :func:`torch.nn.functional.interpolate`, default ``'bicubic'``). Where
            it says nothing, the teacher's own record does, see
            :func:`mmkd_tas.records.records_of` (for the size, what it is built for comes
            first), and where that says nothing, the teacher sees the student's images. Images
            of one channel are repeated for a teacher that takes more.
        input_size: Side or ``(H, W)`` of the student's training images in pixels,
            for distillers that look into the stages; by default what the student
            was built for, if it says so, else 224.
        student_stages, teacher_stages: What ends the stages of a model, instead of what is
            found, see :class:`mmkd_tas.stages.ModelView`.
        teacher_precision: ``'bfloat16'``, ``'float16'`` or ``'float32'``: that of the
            teacher's forward; by default the student's.
        teacher_compile, student_compile: Compile what lies between the points that are
            recorded, with :func:`torch.compile`: True, or a dict of its options.
        channels_last: Keep weights, and so features, in this memory format, which is faster
            for convolutions in reduced precision.
        teacher_cache: Arguments of a :class:`TeacherCache`, for methods that take no
            more of the teacher than logits and pooled features. Needs the
            :class:`EpochSeedHook`.
        data_preprocessor: mmpretrain's, of the student.
        calculate_student_loss: Whether the student also learns from the labels. Without,
            it may learn from images that have none.
        student_trainable, init_cfg, module_inplace, teacher_module_inplace: As in MMRazor.

    Raises:
        SetupError: If the teacher has no weights, a checkpoint does not fit, student and
            teacher have different numbers of classes, a student without a head is to learn
            labels, or ``teacher_input`` is not understood.
    """

    default_hooks = SAFETY_HOOKS

    def __init__(
        self,
        architecture: dict | nn.Module,
        teacher: dict | nn.Module,
        distiller: dict,
        teacher_ckpt: str | None = None,
        student_ckpt: str | None = None,
        random_teacher: bool = False,
        teacher_input: dict | None = None,
        input_size: int | tuple[int, int] | None = None,
        student_stages: Sequence[str | dict] | None = None,
        teacher_stages: Sequence[str | dict] | None = None,
        teacher_precision: str | None = None,
        teacher_compile: bool | dict = False,
        student_compile: bool | dict = False,
        channels_last: bool = False,
        teacher_cache: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        apply()
        if kwargs.pop('teacher_trainable', False):
            raise SetupError(
                'model.teacher_trainable: CrossArchDistill keeps its teacher frozen; leave the '
                'key out, or use mmrazor.SingleTeacherDistill'
            )
        kwargs.pop('teacher_norm_eval', None)
        if isinstance(data_preprocessor, dict):
            data_preprocessor = {'type': 'mmpretrain.ClsDataPreprocessor', **data_preprocessor}
            if augments := _batch_augments(architecture):
                data_preprocessor.setdefault('batch_augments', augments)
            for model in (architecture, teacher):
                if isinstance(model, dict):
                    set_num_classes(model, data_preprocessor.get('num_classes'))
            data_preprocessor = MODELS.build(data_preprocessor)
        built = isinstance(teacher, nn.Module)
        self_loading = built or _asks_for_weights(teacher)
        if isinstance(architecture, dict):
            architecture = MODELS.build(architecture)
        architecture = _as_classifier(architecture)
        input_size = describe(architecture, input_size, student_stages).input_size
        if student_ckpt is not None:
            load_student(architecture, student_ckpt)
        with _random_numbers_aside():
            if isinstance(teacher, dict):
                teacher = MODELS.build(teacher)
            teacher = _as_classifier(teacher)
            self_loading = self_loading or _asks_for_weights(_init_cfgs(teacher))
            if not (teacher_ckpt or self_loading or random_teacher):
                raise SetupError(
                    'model.teacher_ckpt: the teacher has no weights; give its checkpoint, or set '
                    'model.random_teacher=True if you mean to distil from random ones'
                )
            path = checkpoint = None
            if teacher_ckpt or not built:  # one that is built has the weights of the caller
                path, checkpoint = _load_teacher(teacher, teacher_ckpt)
            records = [
                ImageRecord('the model', size=built_for(teacher)),
                *records_of(teacher, path, checkpoint),
            ]
            sizes = ((teacher_input or {}).get('size'), *(r.size for r in records), input_size)
            describe(teacher, next(filter(None, sizes)), teacher_stages)
            super().__init__(
                architecture=architecture,
                teacher=teacher,
                distiller=distiller,
                data_preprocessor=data_preprocessor,
                **kwargs,
            )
        # Take the teacher out of the submodules.
        object.__setattr__(self, 'teacher', self._modules.pop('teacher'))
        self.random_teacher = random_teacher
        # Set by who knows that all processes have equally many images in each step.
        self.equal_batches = False
        self.teacher.eval()
        self._check_classes()
        if self.calculate_student_loss and classes_of(self.student) == 0:
            raise SetupError(
                'model.architecture: the student has no head (num_classes=0), and so learns no '
                'labels: set model.calculate_student_loss=False, or give it num_classes'
            )
        channels = view_of(self.teacher).channels
        self.teacher_inputs = TeacherInput(
            teacher_input or {}, self.data_preprocessor, records, channels, input_size
        )
        self._prepare_precision(teacher_precision)
        self.teacher_cache = None
        if teacher_cache is not None:
            self.teacher_cache = TeacherCache(**teacher_cache)
            self._check_cache()
            self.teacher_cache.prepare(self.teacher)
        self._compiled = bool(teacher_compile or student_compile)
        for model, options in ((self.teacher, teacher_compile), (self.student, student_compile)):
            if options:
                compile_parts(model, options if isinstance(options, dict) else {})
        if channels_last:
            for model in (self.student, self.teacher):
                model.to(memory_format=torch.channels_last)
        self._report()

    def _check_classes(self) -> None:
        """Compare the numbers of classes of what each loss compares, and of nothing else."""
        for loss, references in self._references():
            counts = {}
            for argument, reference in references.items():
                if count := self._classes_of(reference):
                    counts.setdefault(count, argument)
            if len(counts) > 1:
                (one, arg), (other, arg2) = [*counts.items()][:2]
                raise SetupError(
                    f'distiller.loss_forward_mappings.{loss}: {arg} has {one} classes and {arg2} '
                    f'{other}; give the heads of student and teacher the same num_classes, or use '
                    'a method that needs no logits of the teacher (rsd, fitnet)'
                )

    def _references(self) -> Iterator[tuple[str, dict[str, Reference]]]:
        """Yield what each loss of the distiller, also one of MMRazor, takes."""
        for loss, mapping in getattr(self.distiller, 'loss_forward_mappings', {}).items():
            yield loss, {argument: Reference.of(written) for argument, written in mapping.items()}

    def _classes_of(self, reference: Reference) -> int | None:
        """Return the number of classes of logits and labels that a loss takes, else None."""
        side, name, field, connector, *_ = reference
        if side is None:
            outputs = getattr(dict(self.distiller.connectors.items())[name], 'outputs', {})
            return outputs[field].channels if field == 'logits' and field in outputs else None
        if connector is not None:
            return None
        recorder = reference.recorder(self.distiller)
        if isinstance(recorder, StageOutputsRecorder):
            if recorder.source in ('labels', 'classes'):
                side = 'student'  # they come with the images
            elif recorder.source != 'logits':
                return None
        elif not self._makes_logits(side, recorder):
            return None
        return classes_of(getattr(self, side))

    def _makes_logits(self, side: str, recorder: Any) -> bool:
        """Whether one of MMRazor's recorders takes a model's logits."""
        if not isinstance(recorder, ModuleOutputsRecorder):
            return False
        with contextlib.suppress(SetupError):
            logits = view_of(getattr(self, side)).logits_module
            return f'{logits}.'.startswith(f'{recorder.source}.')
        return False

    @property
    def label_readers(self) -> list[str]:
        """What takes the labels of the training images, as keys of the config; else empty."""
        readers = ['calculate_student_loss'] if self.calculate_student_loss else []
        recorders = self.distiller.student_recorders.recorders
        labelled = {
            name
            for name, recorder in recorders.items()
            if getattr(recorder, 'source', None) in ('labels', 'classes')
        }
        for loss, references in self._references():
            taken = {r.name for r in references.values() if r.side == 'student'}
            if labelled & {*taken, *(f'student.{name}' for name in taken)}:
                readers.append(f'distiller.distill_losses.{loss}')
        return readers

    def _prepare_precision(self, name: str | None) -> None:
        names = ('bfloat16', 'float16', 'float32')
        if name not in (None, *names):
            raise SetupError(
                f'model.teacher_precision: {name!r} is not one of {", ".join(map(repr, names))}'
            )
        self.teacher_precision = name and getattr(torch, name)

    def _check_cache(self) -> None:
        kept = {'logits', 'pooled'}
        recorders = self.distiller.teacher_recorders.recorders
        for name, recorder in recorders.items():
            if not isinstance(recorder, StageOutputsRecorder) or recorder.source not in kept:
                raise SetupError(
                    "model.teacher_cache holds the teacher's logits and pooled features, and the "
                    f"distiller takes '{name}' too: leave the cache out, or (for an assistant) set "
                    "distiller.connectors.NAME.first='student'"
                )
        if self.distiller.deliveries.deliveries:
            raise SetupError(
                'model.teacher_cache: distiller.distill_deliveries need the teacher to run: leave '
                'one of the two out'
            )
        if getattr(self.data_preprocessor, 'batch_augments', None) is not None:
            raise SetupError(
                'model.teacher_cache: mixup and CutMix (data_preprocessor.batch_augments, or '
                'train_cfg of the student) give the teacher other images in every run: leave them '
                'or the cache out'
            )

    def _report(self) -> None:
        student = count_parameters(self.student)
        extra = count_parameters(self.distiller)
        print_log(
            f'Parameters: student {student:,}, teacher {count_parameters(self.teacher):,} '
            f'(frozen), extra modules {extra:,} ({extra / student:.1%} of the student, in '
            'training only)',
            'current',
        )
        print_log(self.teacher_inputs.report, 'current')

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the algorithm in one of mmengine's modes."""
        if self._compiled:
            # What CUDA graphs return (mode='reduce-overhead', 'max-autotune') lies in memory that
            # they use again in the next step, and without this word in the next of the parts.
            torch.compiler.cudagraph_mark_step_begin()
        return super().forward(*args, **kwargs)

    def loss(
        self, batch_inputs: Tensor, data_samples: list[BaseDataElement] | None = None
    ) -> dict[str, Tensor]:
        """Return the student's own losses and the distiller's.

        Args:
            batch_inputs: Normalised images, ``(N, C, H, W)``.
            data_samples: N samples with their labels.

        Returns:
            ``student.*`` and ``distill.*`` terms, scalars; mmengine sums those
            with ``loss`` in their name.
        """
        distiller = self.distiller
        deliveries = distiller.deliveries
        if self.distillation_stopped:
            deliveries = contextlib.nullcontext()
        elif self.teacher_cache is not None:
            self._replay_teacher(batch_inputs, data_samples)
        else:
            distiller.set_deliveries_override(False)
            with distiller.teacher_recorders, deliveries:
                self._run_teacher(batch_inputs, data_samples)
            if self.teacher_precision not in (None, torch.float32):
                for recorder in distiller.teacher_recorders.recorders.values():
                    recorder._data_buffer = [_in_float32(data) for data in recorder.data_buffer]
        losses = {}
        distiller.set_deliveries_override(True)
        with (
            distiller.student_recorders,
            deliveries,
            torch.set_grad_enabled(self.student_trainable),
        ):
            if self.calculate_student_loss:
                student_losses = self.student(batch_inputs, data_samples, mode='loss')
                losses.update(add_prefix(student_losses, 'student'))
            else:  # which needs no labels
                self.student(batch_inputs, data_samples, mode='tensor')
        if self.distillation_stopped:
            # DDP waits for a gradient, be it zero, of every parameter of the distiller
            parameters = [p for p in distiller.parameters() if p.requires_grad]
            if parameters:
                losses['distill.loss_stopped'] = 0 * sum(p.sum() for p in parameters)
        else:
            with images_of_step(len(batch_inputs), self.equal_batches):
                losses.update(add_prefix(distiller.compute_distill_losses(), 'distill'))
        return losses

    @torch.no_grad()
    def _run_teacher(self, batch_inputs: Tensor, data_samples: list | None) -> None:
        with self._in_teacher_precision(batch_inputs.device):
            self.teacher(self.teacher_inputs(batch_inputs), data_samples, mode='tensor')

    def _in_teacher_precision(self, device: torch.device) -> contextlib.AbstractContextManager:
        precision = self.teacher_precision
        if precision is None:
            return contextlib.nullcontext()
        reduced = precision != torch.float32
        return torch.autocast(device.type, precision if reduced else None, enabled=reduced)

    def effective_precision(self, device: torch.device) -> torch.dtype:
        """Return the type in which the teacher multiplies, here: autocast may say it."""
        with self._in_teacher_precision(device):
            return torch.mm(*torch.ones(2, 1, 1, device=device)).dtype

    def _replay_teacher(self, batch_inputs: Tensor, data_samples: list) -> None:
        """Give the recorders what they would have recorded."""
        if 'cache_slot' not in data_samples[0]:
            raise SetupError(
                'model.teacher_cache needs the EpochSeedHook, which tells each image its place in '
                'the cache: do not switch default_hooks.epoch_seed off'
            )
        known = self.teacher_cache(
            [sample.cache_slot for sample in data_samples],
            lambda missing: self._run_teacher(
                batch_inputs[missing], [data_samples[i] for i in missing]
            ),
        )
        for recorder in self.distiller.teacher_recorders.recorders.values():
            recorder._data_buffer = [sent(known[recorder.source], batch_inputs.device)]

    @torch.no_grad()
    def teacher_val_step(self, data: dict) -> list[BaseDataElement]:
        """Return the teacher's predictions for a batch of the student's data loader."""
        data = self.data_preprocessor(data, False)
        return self.teacher(
            self.teacher_inputs(data['inputs']), data['data_samples'], mode='predict'
        )

    def train(self, mode: bool = True) -> 'CrossArchDistill':
        """Set the mode of the student and the distiller; the teacher stays in eval."""
        BaseModel.train(self, mode)
        self.teacher.eval()
        return self

    def __deepcopy__(self, memo: dict) -> 'CrossArchDistill':
        """Copy all but the teacher, which never changes (mmengine copies models for EMA)."""
        for shared in (self.teacher, self.distiller.teacher_recorders, self.teacher_cache):
            memo[id(shared)] = shared
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _apply(self, fn, *args, **kwargs):
        self.teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


@contextlib.contextmanager
def _random_numbers_aside() -> Iterator[None]:
    """Draw from another stream, so that a student begins as it would without a teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
        yield


def load_student(student: BaseModel, path: str) -> None:
    """Give a student the weights that it starts from; what is new of it is initialised."""
    if not student.is_init:
        student.init_weights()
    load_weights(student, path, 'model.student_ckpt', classes_of(student))


def _load_teacher(teacher: nn.Module, path: str | None) -> tuple[str | None, dict | None]:
    """Give the teacher its weights; return the file they are from, and what is in it."""
    init_cfg = getattr(teacher, 'init_cfg', None)
    if path is None and isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
        path = init_cfg['checkpoint']
    if path is not None:
        headless = 0 if classes_of(teacher) == 0 else None
        return path, load_weights(teacher, path, 'model.teacher_ckpt', headless)
    if not getattr(teacher, '_is_init', False):
        teacher.init_weights()
    return None, None


def _batch_augments(student: dict | BaseModel) -> dict | None:
    """Return the mixup and cutmix of a student's config."""
    if isinstance(student, dict) and 'cfg_path' in student:
        student = get_config(student['cfg_path']).model
    return student.get('train_cfg') if isinstance(student, dict) else None


def compile_parts(model: nn.Module, options: dict) -> None:
    """Compile the largest modules of a model in which no output is recorded.

    Hooks stay outside of what is compiled, and so they need no understanding of it.

    Args:
        model: Has its hooks already.
        options: Of :func:`torch.compile`.
    """
    watched = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if watched or isinstance(model, nn.ModuleList | nn.ModuleDict):
        for child in model.children():
            compile_parts(child, options)
    elif any(True for _ in model.parameters()):
        model.compile(**options)


def _in_float32(data: Any) -> Any:
    return data.float() if isinstance(data, Tensor) and data.is_floating_point() else data


def _as_classifier(model: nn.Module) -> nn.Module:
    """Give a plain module the modes of mmpretrain's classifiers."""
    return model if isinstance(model, BaseModel) else Classifier(model)


def _init_cfgs(model: nn.Module) -> list:
    """Return how the modules of a built model are to be initialised, in mmengine's terms."""
    return [getattr(module, 'init_cfg', None) for module in model.modules()]


def _asks_for_weights(cfg: Any) -> bool:
    """Return whether a config names weights anywhere: mmengine's, timm's and others' keys."""
    if isinstance(cfg, dict):
        names = ('pretrained', 'weights', 'checkpoint', 'checkpoint_path')
        given = isinstance(cfg.get('model'), nn.Module)  # built, with what weights it has
        asked = given or any(cfg.get(name) for name in names)
        return asked or any(map(_asks_for_weights, cfg.values()))
    return isinstance(cfg, list | tuple) and any(map(_asks_for_weights, cfg))
