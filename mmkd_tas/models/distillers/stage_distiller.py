"""MMRazor's configurable distiller, with stages instead of module paths."""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

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
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._results: dict[Any, Any] = {}
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
                stages = [self._stage_of(reference) for reference in inputs or kind.inputs]
                cfg.update(self._views, stages=stages)
            connector = self.connectors[name] = MODELS.build(cfg)
            self._inputs[name] = tuple(inputs or getattr(connector, 'inputs', ()))
            if hasattr(connector, 'init_weights'):
                with _without_log():  # of every weight; that of the whole model names it again
                    connector.init_weights()

    def _stage_of(self, reference: str) -> Stage | None:
        """Return the stage that a reference leads to, or what is like one, if that is known."""
        owner, _, name = reference.partition('.')
        if owner in _SIDES:
            own = name in self._recorders(owner).recorders and name not in SOURCES
            return None if own else self._views[owner].source(name)
        connector = dict(self.connectors.items()).get(owner)
        return getattr(connector, 'outputs', {}).get(name)

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
            for argument, reference in mapping.items():
                key = f'distiller.loss_forward_mappings.{loss}.{argument}'
                if isinstance(reference, str):
                    self._check_reference(reference, key)
                    self._let_target_learn(self.distill_losses[loss], argument, reference)
                else:
                    self._check_stock_reference(reference, key)

    def _let_target_learn(self, loss: nn.Module, argument: str, reference: str) -> None:
        owner, _, field = reference.partition('.')
        connector = dict(self.connectors.items()).get(owner)
        is_target = isinstance(connector, PairProjector) and field == 'target'
        learns = isinstance(loss, DistillLoss) and not (
            argument == 'preds_T' and loss.detach_target
        )
        if is_target and learns:
            connector.learn_target()

    def _check_reference(self, reference: str, key: str) -> None:
        owner, _, name = reference.partition('.')
        if owner in _SIDES:
            recorders = self._recorders(owner).recorders
            if reference not in recorders and (name not in recorders or name in SOURCES):
                # Under its whole reference, so that it is told from the config's own.
                recorders[reference] = StageOutputsRecorder(name, layout='raw')
            return
        if owner not in self.connectors:
            known = [*_SIDES, *self.connectors]
            raise SetupError(
                f"{key}: '{reference}' does not exist: there is no connector '{owner}'"
                + suggest(owner, known)
            )
        if not self._inputs.get(owner):
            raise SetupError(
                f"{key}: the connector '{owner}' has no inputs; add "
                f"inputs=['student.stage4'] or the like to distiller.connectors.{owner}"
            )
        kind = inspect.signature(self.connectors[owner].forward_train).return_annotation
        fields = getattr(kind, '_fields', None)
        if name and fields and name not in fields:
            raise SetupError(f"{key}: '{owner}' returns no {name!r}{suggest(name, fields)}")
        for needed in self._inputs[owner]:
            self._check_reference(needed, key)

    def _check_stock_reference(self, reference: Any, key: str) -> None:
        if not isinstance(reference, Mapping) or not {'recorder', 'from_student'} <= set(reference):
            raise SetupError(
                f"{key}: {reference!r} is not a reference; write 'student.logits', or "
                "dict(recorder='...', from_student=True)"
            )
        side = 'student' if reference['from_student'] else 'teacher'
        name, connector = reference['recorder'], reference.get('connector')
        if name not in self._recorders(side).recorders:
            raise SetupError(
                f"{key}: {side}_recorders has no '{name}'"
                + suggest(name, self._recorders(side).recorders)
            )
        if connector is not None and connector not in self.connectors:
            raise SetupError(
                f"{key}: there is no connector '{connector}'" + suggest(connector, self.connectors)
            )

    # --- running --------------------------------------------------------------

    def compute_distill_losses(self) -> dict[str, Tensor]:
        """Return the distillation losses of the step, and drop its records."""
        terms: dict[str, Tensor] = {}
        try:
            for name, mapping in self.loss_forward_mappings.items():
                arguments = {key: self._fetch(reference) for key, reference in mapping.items()}
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

    def _fetch(self, reference: str | Mapping) -> Any:
        """Return what a reference of a loss leads to; stages as maps ``(N, C, H, W)``."""
        if not isinstance(reference, str):
            return self.get_record(**reference)
        owner, _, name = reference.partition('.')
        if owner in _SIDES:
            recorder = self._recorder(reference)
            record = recorder.get_record_data()
            raw = getattr(recorder, 'layout', None) == 'raw' and recorder.stage is not None
            return recorder.stage.to_map(record) if raw else record
        result = self._result(owner)
        return getattr(result, name) if name else result

    def _recorder(self, reference: str) -> Any:
        side, _, name = reference.partition('.')
        recorders = self._recorders(side).recorders
        return recorders.get(reference) or recorders[name]

    def _result(self, name: str) -> Any:
        """Return what a connector makes of its inputs, once per step."""
        if name not in self._results:
            self._results[name] = self.connectors[name](
                *(
                    self._recorder(reference).get_record_data()
                    if reference.partition('.')[0] in _SIDES
                    else self._fetch(reference)
                    for reference in self._inputs[name]
                )
            )
        return self._results[name]

    def get_record(
        self,
        recorder: str,
        from_student: bool,
        record_idx: int = 0,
        data_idx: int | None = None,
        connector: str | None = None,
        connector_idx: int | None = None,
    ) -> Any:
        """Return a record in MMRazor's way; a connector runs once for each record."""
        key = (recorder, from_student, record_idx, data_idx, connector)
        if key not in self._results:
            self._results[key] = super().get_record(
                recorder, from_student, record_idx, data_idx, connector
            )
        result = self._results[key]
        return result if connector_idx is None else result[connector_idx]


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
