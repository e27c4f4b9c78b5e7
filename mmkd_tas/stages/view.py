"""One view of every classifier: its stages, pooled feature, logits and tails."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property

from torch import nn

from ..errors import SetupError
from ..outputs import built_for
from .choice import choose
from .stage import Stage
from .tail import Tail
from .trace import Trace, feature_of, trace

OF_IMAGES = ('labels', 'classes', 'indices')  # sources of a recorder that come with the images


def describe(
    model: nn.Module,
    input_size: int | tuple[int, int] | None = None,
    stages: Sequence[str | dict] | None = None,
) -> 'ModelView':
    """Say once what is to be known of a model beside itself, and return its view."""
    model.stage_view = ModelView(model, input_size, stages)
    return model.stage_view


def view_of(model: nn.Module) -> 'ModelView':
    """Return the view of a model, the same one to all who ask."""
    return getattr(model, 'stage_view', None) or describe(model)


class ModelView:
    """What connectors and recorders need to know of a classifier, found by watching it.

    Everything is found when it is first asked for, by running fake tensors through the
    model, see :func:`trace`: without a change to weights, statistics, random state, modes
    or hooks.

    Args:
        model: A classifier; ``model(images)`` returns logits ``(N, C)``. Also one that says
            ``num_classes == 0`` and returns a feature.
        input_size: Side or ``(H, W)`` of the images in pixels. By default what
            the model was built for, if it says so, else 224.
        stages: What ends the stages, instead of what :func:`choose` finds: module paths,
            or dicts with ``module`` and any of ``layout``, ``prefix``, ``channels``, ``grid``.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: int | tuple[int, int] | None = None,
        stages: Sequence[str | dict] | None = None,
    ) -> None:
        self.model = model
        size = input_size or built_for(model) or 224
        self.input_size = (size, size) if isinstance(size, int) else tuple(size)
        self._given = [{'module': e} if isinstance(e, str) else {**e} for e in stages or ()]

    @cached_property
    def trace(self) -> Trace:
        """What was seen of a forward."""
        return trace(self.model, self.input_size, [entry.get('module') for entry in self._given])

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return self.trace.image[0]

    @property
    def num_classes(self) -> int:
        """Number of classes: the width of the logits; 0 where there is no head."""
        return 0 if self.trace.headless else self.trace.logits.dims[1][1]

    @property
    def width(self) -> int:
        """Width D of the pooled feature ``(N, D)``."""
        if self.trace.headless:
            return self.trace.logits.dims[1][1]
        widths = [call.enters.dims[dim][1] for call, dim in self.trace.classifiers]
        return widths[0] if len({*widths}) == 1 else sum(widths)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order.

        Raises:
            SetupError: If they are not found and not given, or what is given does not fit.
        """
        if self._given:
            return tuple(self._given_stage(entry) for entry in self._given)
        try:
            return choose(self.trace, self.model)
        except SetupError as error:
            raise SetupError(
                f'the stages of {self._name} could not be found: {error}; use a method on logits '
                'or pooled features (kd, dist, rsd), or name the stages, such as '
                f'stages={self._suggested()} (in model: student_stages or '
                'teacher_stages; `mmkd-tas stages --all` lists what can be named)'
            ) from error

    def source(self, name: str) -> Stage | None:
        """Return what a recorder's source is: a stage, a vector like one, or none of a model."""
        if name == 'pooled':
            path = '' if self.trace.headless else self.classifiers[0]
            return Stage(path, 'NC', channels=self.width, grid=(1, 1))
        if name == 'logits':
            return Stage(self.logits_module, 'NC', channels=self.num_classes, grid=(1, 1))
        if name in OF_IMAGES:
            return None
        number = name.removeprefix('stage')
        return self.stage(int(number) if number.isdigit() else number)

    def stage(self, number: int) -> Stage:
        """Return a stage by its number, from 1."""
        if number not in range(1, len(self.stages) + 1):
            raise SetupError(
                f'{self._name} has the stages 1 to {len(self.stages)}, and no stage {number!r}'
            )
        return self.stages[number - 1]

    @property
    def logits_module(self) -> str:
        """Path of the innermost module that returns the logits, perhaps in another shape.

        Raises:
            SetupError: If the model has no head.
        """
        if self.trace.headless:
            raise SetupError(
                f'{self._name} has no head, and so no logits: use a method on features (rsd, '
                'fitnet), or give it a head (num_classes=...)'
            )
        return self.trace.logits_call.path

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Paths of the modules that turn the pooled feature into logits, see :func:`pooled_of`.

        One, as a rule. A distilled DeiT has two.
        """
        found = tuple(call.path for call, _ in self.trace.classifiers)
        if not found and not self.trace.headless:
            raise SetupError(f'{self._name}: no module makes logits from a pooled feature (N, D)')
        return found

    def features(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the modules that could end a stage, with the shape of their output."""
        return [
            (call.path, call.output.sizes)
            for call in self.trace.calls
            if call.path and call.is_feature
        ]

    def tail(self, number: int) -> Tail:
        """Return what runs after a stage: feature -> (pooled feature, logits)."""
        return Tail(self.model, self.trace, self.stage(number), self.stages[-1])

    # --- finding the stages ---------------------------------------------------

    @property
    def _name(self) -> str:
        inner = (getattr(self.model, name, None) for name in ('backbone', 'model'))
        return type(next((m for m in inner if isinstance(m, nn.Module)), self.model)).__name__

    def _suggested(self) -> list[str]:
        """Return the blocks that end nearest to 2, 4, 10 and 12 twelfths of the computation."""
        blocks = {c for c in self.trace.calls if c.path and c.is_feature and c.products}
        left = [c for c in self.trace.calls if c in blocks and blocks.isdisjoint(c.parents)]
        found: list[str] = []
        for later, twelfths in zip((3, 2, 1, 0), (2, 4, 10, 12), strict=True):
            share = twelfths / 12 * self.trace.flops
            near = min(
                left[: -later or None], key=lambda c: abs(c.ended.flops - share), default=None
            )
            if near is not None:
                found.append(near.path)
                left = left[left.index(near) + 1 :]
        return found

    def _given_stage(self, entry: dict) -> Stage:
        path = entry.get('module', '')
        names = [name for name, _ in self.model.named_modules() if name]
        if path not in names:
            close = difflib.get_close_matches(path, names, n=3) or names[:3]
            raise SetupError(
                f"stages: {self._name} has no module '{path}'; did you mean {' or '.join(close)}?"
            )
        calls = self.trace.calls_of
        if path not in calls:
            inside = [called for called in calls if called.startswith(f'{path}.')]
            outer = [called for called in inside if called.rpartition('.')[0] not in calls]
            others = ' or '.join(outer[-2:]) or 'another module'
            raise SetupError(f"stages: '{path}' is never called itself; name {others} instead")
        call = calls[path][-1]
        output = feature_of(call.output)
        if not output.is_feature:
            raise SetupError(
                f"stages: '{path}' is declared as a stage, but it returns neither maps nor tokens "
                'with the batch as the first dimension; name another module'
            )
        if unknown := entry.keys() - {field.name for field in fields(Stage)}:
            raise SetupError(f"stages: '{path}' has the unknown keys {sorted(unknown)}")
        if 'grid' in entry:
            entry['grid'] = tuple(entry['grid'])
        return Stage.declared(entry, output.sizes, call.stage)
