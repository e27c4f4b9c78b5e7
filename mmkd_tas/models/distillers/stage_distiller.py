"""MMRazor's configurable distiller, with stages instead of module paths."""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from mmengine.logging import MMLogger
from mmengine.utils import is_list_of
from mmrazor.models.distillers import ConfigurableDistiller
from torch import Tensor, nn

from ...errors import SetupError, suggest
from ...registry import MODELS
from ...stages import SOURCES, Stage, StageOutputsRecorder, view_of
from ..connectors.base import StageConnector
from ..connectors.pair_projector import PairProjector
from ..losses import LogitAccuracy
from ..losses.base import DistillLoss
from .loss_schedule import LossSchedule

_SIDES = ('student', 'teacher')


class Reference(NamedTuple):
    """Where an argument of a loss, or an input of a connector, comes from.

    Attributes:
        side: ``'student'`` or ``'teacher'``, of a record; None for the result of a connector
            that has inputs of its own.
        name: Of the recorder, or of that connector.
        field: Of the result, where it is a named tuple; or its index.
        connector: Which the record passes.
        record_idx, data_idx: Which of the records, and of its parts, as in MMRazor; by default
            the recorder decides.
        raw: Whether a stage stays in the layout of its model.
        own: Whether the config has to have the recorder.
    """

    side: str | None
    name: str
    field: str | int | None = None
    connector: str | None = None
    record_idx: int | None = None
    data_idx: int | None = None
    raw: bool = False
    own: bool = False

    @classmethod
    def of(cls, written: Any, key: str = '', raw: bool = False) -> 'Reference':
        """Read what stands in a config: ``'student.logits'``, or MMRazor's dict.

        Args:
            written: The value.
            key: Its place in the config, for the error.
            raw: Of the reference.

        Raises:
            SetupError: If it is neither.
        """
        if isinstance(written, str):
            owner, _, name = written.partition('.')
            return cls(owner, name, raw=raw) if owner in _SIDES else cls(None, owner, name or None)
        if not isinstance(written, Mapping) or not {'recorder', 'from_student'} <= set(written):
            raise SetupError(
                f"{key}: {written!r} is not a reference; write 'student.logits', or "
                "dict(recorder='...', from_student=True)"
            )
        return cls(
            _SIDES[not written['from_student']],
            written['recorder'],
            written.get('connector_idx'),
            written.get('connector'),
            written.get('record_idx', 0),
            written.get('data_idx'),
            raw=True,
            own=True,
        )

    def recorder(self, distiller: ConfigurableDistiller) -> Any:
        """Return the recorder of a distiller whose record this is."""
        recorders = getattr(distiller, f'{self.side}_recorders').recorders
        added = None if self.own else recorders.get(f'{self.side}.{self.name}')
        return added or recorders[self.name]


@MODELS.register_module()
class StageDistiller(ConfigurableDistiller):
    """Compute distillation losses from the stages of any student and teacher.

    A loss takes its arguments from *references*:

    - ``'student.stage3'``, ``'teacher.pooled'``, ``'student.logits'``,
      ``'student.labels'``: what :class:`StageOutputsRecorder` records, without
      a recorder in the config; or a recorder of the config by its name.
    - ``'assistant'``: what a connector returns; ``'assistant.logits'``: a field
      of it, where it returns a named tuple.

    >>> distiller = dict(
    ...     type='mmkd_tas.StageDistiller',
    ...     distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4)),
    ...     loss_forward_mappings=dict(
    ...         loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits')))

    MMRazor's own way of writing, ``dict(recorder=..., from_student=...)``, works
    as well, so that a config of ``ConfigurableDistiller`` runs unchanged. The
    differences to that class:

    - Connectors may be built from the stages of student and teacher
      (:class:`StageConnector`), take several references (``inputs=[...]``, also
      those of other connectors), and run once per step, however many losses
      use them.
    - What the losses need is checked when the distiller is built: every loss
      has its arguments, and every reference leads to something.
    - Records are dropped when the losses are computed.

    Args:
        student_recorders, teacher_recorders, distill_deliveries: As in MMRazor.
        connectors, distill_losses, loss_forward_mappings: As in MMRazor, with the
            references above. A loss may return several named terms.
        loss_schedules: Factors of losses that change during training, by the name of
            the loss: ``dict(loss_kd=dict(warmup=5, end=100, decay='cosine'))``, in
            epochs; see :class:`LossSchedule`.

    Raises:
        SetupError: If something does not fit together.
    """

    def __init__(
        self,
        student_recorders: dict[str, dict] | None = None,
        teacher_recorders: dict[str, dict] | None = None,
        distill_deliveries: dict[str, dict] | None = None,
        connectors: dict[str, dict | list[dict]] | None = None,
        distill_losses: dict[str, dict] | None = None,
        loss_forward_mappings: dict[str, dict] | None = None,
        loss_schedules: dict[str, dict] | None = None,
        **kwargs: Any,
    ) -> None:
        # In an order of our own, so that a dumped config, which is sorted, gives the same run.
        super().__init__(
            student_recorders=student_recorders,
            teacher_recorders=teacher_recorders,
            distill_deliveries=distill_deliveries,
            distill_losses=dict(sorted((distill_losses or {}).items())),
            **kwargs,
        )
        self._connector_cfgs = _in_order(connectors or {})
        self._inputs: dict[str, list[Reference]] = {}
        self._references: dict[str, dict[str, Reference]] = {}
        self._results: dict[Reference, Any] = {}  # of the step
        self.loss_forward_mappings = loss_forward_mappings or {}
        schedules = (loss_schedules or {}).items()
        self.loss_schedules = {name: LossSchedule(**cfg) for name, cfg in schedules}
        for name in self._connector_cfgs:
            if name in _SIDES or '.' in name or hasattr(self.connectors, name):
                raise SetupError(
                    f"distiller.connectors: '{name}' is not a valid name for a connector; choose "
                    'one without a dot that is neither student nor teacher nor a method of modules'
                )
        self._check_losses()

    # --- building -------------------------------------------------------------

    def build_distill_losses(self, losses: dict[str, dict] | None = None) -> nn.ModuleDict:
        """Build the losses; what is a statistic is no mistake for lacking ``loss`` in its name."""
        with warnings.catch_warnings():
            for name, cfg in (losses or {}).items():
                if _class_of(cfg) is LogitAccuracy:
                    warnings.filterwarnings('ignore', f'Warning: If {name} is a loss')
            return super().build_distill_losses(losses)

    def prepare_from_student(self, model: nn.Module) -> None:
        """Take note of the student."""
        self._prepare('student', model)

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Take note of the teacher."""
        self._prepare('teacher', model)

    def _prepare(self, side: str, model: nn.Module) -> None:
        self._views = {**getattr(self, '_views', {}), side: view_of(model)}
        if len(self._views) == len(_SIDES):
            self._build_stage_connectors()
            self._check_references()
            for name in _SIDES:
                self._recorders(name).initialize(self._views[name].model)

    def _recorders(self, side: str) -> Any:
        return self.student_recorders if side == 'student' else self.teacher_recorders

    def _build_stage_connectors(self) -> None:
        for name, cfg in self._connector_cfgs.items():
            if is_list_of(cfg, dict):
                self.connectors.update(self.build_connectors({name: cfg}))
                continue
            cfg = dict(cfg)
            inputs = cfg.pop('inputs', None)
            kind = _class_of(cfg)
            if inspect.isclass(kind) and issubclass(kind, StageConnector):
                stages = [self._stage_of(Reference.of(one)) for one in inputs or kind.inputs]
                cfg.update(self._views, stages=stages)
            connector = self.connectors[name] = MODELS.build(cfg)
            inputs = inputs or getattr(connector, 'inputs', ())
            self._inputs[name] = [Reference.of(one, raw=True) for one in inputs]
            if hasattr(connector, 'init_weights'):
                with _without_log():  # of every weight; that of the whole model names it again
                    connector.init_weights()

    def _stage_of(self, reference: Reference) -> Stage | None:
        """Return the stage that a reference leads to, or what is like one, if that is known."""
        side, name, field, *_ = reference
        if side is None:
            return getattr(dict(self.connectors.items()).get(name), 'outputs', {}).get(field)
        own = name in self._recorders(side).recorders and name not in SOURCES
        return None if own else self._views[side].source(name)

    # --- checking -------------------------------------------------------------

    def _check_losses(self) -> None:
        """Check that every loss gets its arguments."""
        for name, loss in self.distill_losses.items():
            key = f'distiller.loss_forward_mappings.{name}'
            mapping = self.loss_forward_mappings.get(name)
            if not isinstance(mapping, Mapping):
                raise SetupError(f'{key} is missing: without it distill_losses.{name} never runs')
            parameters = inspect.signature(loss.forward).parameters
            variable = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            for argument in mapping:
                if argument not in parameters and not variable:
                    raise SetupError(
                        f'{key}: {type(loss).__name__} has no argument {argument!r}'
                        + suggest(argument, parameters)
                    )
            for argument, parameter in parameters.items():
                named = parameter.kind in (
                    parameter.POSITIONAL_OR_KEYWORD,
                    parameter.KEYWORD_ONLY,
                )
                if named and parameter.default is parameter.empty and argument not in mapping:
                    raise SetupError(f'{key}: {type(loss).__name__} needs {argument!r} too')
        for key in ('loss_forward_mappings', 'loss_schedules'):
            for name in getattr(self, key).keys() - self.distill_losses.keys():
                raise SetupError(
                    f'distiller.{key}.{name}: distill_losses has no such loss'
                    + suggest(name, self.distill_losses.keys())
                )

    def _check_references(self) -> None:
        """Check that every reference leads to something, and record what it needs."""
        for name, inputs in self._inputs.items():
            for reference in inputs:
                self._check_reference(reference, f'distiller.connectors.{name}.inputs')
        for loss, mapping in self.loss_forward_mappings.items():
            found = self._references[loss] = {}
            for argument, written in mapping.items():
                key = f'distiller.loss_forward_mappings.{loss}.{argument}'
                found[argument] = Reference.of(written, key)
                self._check_reference(found[argument], key)
                self._let_target_learn(self.distill_losses[loss], argument, found[argument])

    def _let_target_learn(self, loss: nn.Module, argument: str, reference: Reference) -> None:
        connector = dict(self.connectors.items()).get(reference.name)
        is_target = isinstance(connector, PairProjector) and reference.field == 'target'
        learns = isinstance(loss, DistillLoss) and not (
            argument == 'preds_T' and loss.detach_target
        )
        if reference.side is None and is_target and learns:
            connector.learn_target()

    def _check_reference(self, reference: Reference, key: str) -> None:
        """Check one, and add the recorder that it needs."""
        side, name, field, connector, *_ = reference
        if connector is not None and connector not in self.connectors:
            raise SetupError(
                f"{key}: there is no connector '{connector}'" + suggest(connector, self.connectors)
            )
        if side is None:
            self._check_result(name, field, key)
            return
        recorders = self._recorders(side).recorders
        full = f'{side}.{name}'
        if reference.own and name not in recorders:
            raise SetupError(f"{key}: {side}_recorders has no '{name}'" + suggest(name, recorders))
        added = not reference.own and (name not in recorders or name in SOURCES)
        if added and full not in recorders:
            # Under its whole reference, so that it is told from the config's own.
            recorders[full] = StageOutputsRecorder(name, layout='raw')

    def _check_result(self, name: str, field: str | int | None, key: str) -> None:
        """Check a reference to what a connector makes of its inputs."""
        if name not in self.connectors:
            full = name if field is None else f'{name}.{field}'
            raise SetupError(
                f"{key}: '{full}' does not exist: there is no connector '{name}'"
                + suggest(name, [*_SIDES, *self.connectors])
            )
        if not self._inputs.get(name):
            raise SetupError(
                f"{key}: the connector '{name}' has no inputs; add "
                f"inputs=['student.stage4'] or the like to distiller.connectors.{name}"
            )
        kind = inspect.signature(self.connectors[name].forward_train).return_annotation
        fields = getattr(kind, '_fields', None)
        if field and fields and field not in fields:
            raise SetupError(f"{key}: '{name}' returns no {field!r}{suggest(field, fields)}")
        for needed in self._inputs[name]:
            self._check_reference(needed, key)

    # --- running --------------------------------------------------------------

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Return the distillation losses of the step, and drop its records."""
        terms: dict[str, Tensor] = {}
        try:
            for name, references in self._references.items():
                arguments = {key: self._fetch(reference) for key, reference in references.items()}
                loss = self.distill_losses[name](**arguments)
                schedule = self.loss_schedules.get(name)
                # Also when the factor is 0 there are gradients: DDP waits for all of them.
                factor = 1 if schedule is None else schedule.factor()
                named = loss if isinstance(loss, Mapping) else {'': loss}
                for part, term in named.items():
                    terms[f'{name}.{part}' if part else name] = term * factor
            return terms
        finally:
            self._results.clear()
            for side in _SIDES:
                for recorder in self._recorders(side).recorders.values():
                    recorder.reset_data_buffer()

    def _fetch(self, reference: Reference) -> Any:
        """Return what a reference leads to; whatever makes it runs once per step."""
        whole = reference._replace(field=None)
        if whole not in self._results:
            self._results[whole] = self._made(whole)
        result, field = self._results[whole], reference.field
        if field is None:
            return result
        return result[field] if isinstance(field, int) else getattr(result, field)

    def _made(self, reference: Reference) -> Any:
        """Return a record, stages as maps ``(N, C, H, W)``, or what a connector makes."""
        if reference.side is None:
            return self.connectors[reference.name](*map(self._fetch, self._inputs[reference.name]))
        recorder, index = reference.recorder(self), reference.record_idx
        which = () if index is None else (index, reference.data_idx)
        record = recorder.get_record_data(*which)
        stage = getattr(recorder, 'stage', None)
        if not reference.raw and stage is not None and recorder.layout == 'raw':
            record = stage.to_map(record)
        connector = reference.connector
        return record if connector is None else self.connectors[connector](record)


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def _in_order(connectors: dict[str, dict | list[dict]]) -> dict[str, dict | list[dict]]:
    """Return connectors by name, each after those whose outputs it takes."""
    needs = {
        name: [r.partition('.')[0] for r in (isinstance(cfg, dict) and cfg.get('inputs')) or ()]
        for name, cfg in sorted(connectors.items())
    }
    try:
        order = [*TopologicalSorter(needs).static_order()]
    except CycleError as error:
        names = ' and '.join(sorted({*error.args[1]}))
        raise SetupError(f'distiller.connectors: {names} need each other') from error
    return {name: connectors[name] for name in order if name in connectors}


def _class_of(cfg: dict) -> Any:
    """Return what the `type` of a config is: named, or, in pure-Python configs, itself."""
    return MODELS.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
