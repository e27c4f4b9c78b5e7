"""One view of every classifier: its stages, pooled feature, logits and tails."""

import contextlib
import difflib
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property

from torch import nn

from ..errors import SetupError
from . import catalog
from .stage import LAYOUTS, Stage
from .tail import Tail
from .trace import Call, Shape, channels_of, feature_of, is_shape, trace


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

    Everything is found when it is first asked for, by running one small batch
    through the model in eval mode: without gradients, without a change to
    weights, BatchNorm statistics, random state, modes or hooks.

    Args:
        model: A classifier; ``model(images)`` returns logits ``(N, C)``.
        input_size: Side or ``(H, W)`` of the images in pixels. By default what
            the model was built for, if it says so, else 224.
        stages: What ends the stages, for a model that the catalog does not know:
            module paths, or dicts with ``module`` and any of ``layout``,
            ``prefix``, ``channels``, ``grid``.
    """

    def __init__(
        self,
        model: nn.Module,
        input_size: int | tuple[int, int] | None = None,
        stages: Sequence[str | dict] | None = None,
    ) -> None:
        self.model = model
        size = input_size or _built_for(model) or 224
        self.input_size = (size, size) if isinstance(size, int) else tuple(size)
        self._given = stages

    @cached_property
    def channels(self) -> int:
        """Number of channels of the images."""
        return channels_of(self.model, self.input_size)

    @cached_property
    def _trace(self) -> tuple[list[Call], Shape]:
        return trace(self.model, self.input_size)

    @cached_property
    def calls(self) -> dict[str, list[Call]]:
        """The calls of each module during a forward, in order."""
        calls: dict[str, list[Call]] = {}
        for call in self._trace[0]:
            calls.setdefault(call.path, []).append(call)
        return calls

    @property
    def num_classes(self) -> int:
        """Number of classes: the width of the logits."""
        return self._trace[1].dims[1][1]

    @property
    def width(self) -> int:
        """Width D of the pooled feature ``(N, D)``."""
        return self.calls[self.classifiers[0]][-1].inputs[0].dims[1][1]

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in order.

        Raises:
            SetupError: If the model is not in the catalog and its stages are not
                given, or what is given does not fit.
        """
        if self._given is not None:
            return tuple(self._given_stage(entry) for entry in self._given)
        stack = catalog.find_stack(self.model)
        if stack is None:
            raise self._unknown('it is neither a timm model nor in the table of mmpretrain')
        outputs, reductions = [], []
        for i, module in enumerate(stack.modules):
            for path in self._called(module):
                channels = stack.channels[i] if stack.channels else None
                outputs.append(self._measured(path, stack.prefix, channels))
                reductions += stack.reductions[i : i + 1]
        try:
            return tuple(catalog.choose(outputs, tuple(reductions)))
        except SetupError as error:
            raise self._unknown(str(error)) from error

    def source(self, name: str) -> Stage | None:
        """Return what a recorder's source is: a stage, or a vector like one; labels are none."""
        if name == 'pooled':
            return Stage(self.classifiers[0], 'NC', channels=self.width, grid=(1, 1))
        if name == 'logits':
            return Stage(self.logits_module, 'NC', channels=self.num_classes, grid=(1, 1))
        if name in ('labels', 'classes'):
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

    @cached_property
    def logits_module(self) -> str:
        """Path of the innermost module that returns the logits."""
        return next(call.path for call in self._trace[0] if call.makes_logits)

    @cached_property
    def classifiers(self) -> tuple[str, ...]:
        """Paths of the modules that turn the pooled feature into logits.

        One, as a rule. A distilled DeiT has two, and the mean of their inputs is
        its pooled feature.
        """
        last = self.calls[self.logits_module][-1]
        if _is_vector(last.inputs):
            return (last.path,)
        modules = dict(self.model.named_modules())
        logits = self._trace[1]
        heads = tuple(
            call.path
            for call in self._trace[0]
            if call.output == logits and _is_vector(call.inputs) and not call.children
            if any(True for _ in modules[call.path].parameters())
        )
        if not heads:
            raise SetupError(f'{self._name}: no module makes logits from a pooled feature (N, D)')
        return heads

    def features(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the modules that could end a stage, with the shape of their output."""
        return [
            (call.path, tuple(fixed for _, fixed in call.output.dims[1:]))
            for call in self._trace[0]
            if call.path and is_shape(call.output) and call.output.is_feature
        ]

    def tail(self, number: int) -> Tail:
        """Return what runs after a stage: feature -> (pooled feature, logits)."""
        return Tail(self, self.stage(number))

    # --- finding the stages ---------------------------------------------------

    @property
    def _name(self) -> str:
        backbone = getattr(self.model, 'backbone', None) or getattr(self.model, 'model', None)
        return type(self.model if backbone is None else backbone).__name__

    def _called(self, path: str) -> list[str]:
        """Return the path of a module, or those of its children where it is never called."""
        if path in self.calls:
            return [path]
        children = self.model.get_submodule(path).named_children()
        return [called for name, _ in children for called in self._called(f'{path}.{name}')]

    def _measured(self, path: str, prefix: int, channels: int | None) -> Stage:
        sizes = self._sizes(path)
        if len(sizes) == 2:
            stage = Stage(path, 'NLC', prefix)
        else:
            channels_last = channels is not None and sizes[0] != channels
            stage = Stage(path, 'NHWC' if channels_last else 'NCHW')
        return stage.measured(sizes, self.input_size)

    def _sizes(self, path: str) -> tuple[int, ...]:
        """Return the shape of what a module returns for one image."""
        dims = feature_of(self.calls[path][-1].output).dims
        if dims[0] != (1, 0) or any(factor for factor, _ in dims[1:]):
            raise SetupError(
                f"stages: the first dimension of what '{path}' returns is not the batch; name "
                'another module'
            )
        return tuple(fixed for _, fixed in dims[1:])

    def _given_stage(self, entry: str | dict) -> Stage:
        entry = {'module': entry} if isinstance(entry, str) else dict(entry)
        path = entry.get('module', '')
        names = [name for name, _ in self.model.named_modules() if name]
        if path not in names:
            close = difflib.get_close_matches(path, names, n=3) or names[:3]
            raise SetupError(
                f"stages: {self._name} has no module '{path}'; did you mean {' or '.join(close)}?"
            )
        if path not in self.calls:
            children = ' or '.join(self._called(path)[-2:]) or 'another module'
            raise SetupError(f"stages: '{path}' is never called itself; name {children} instead")
        sizes = self._sizes(path)
        entry.setdefault('layout', 'NCHW' if len(sizes) == 3 else 'NLC')
        if unknown := entry.keys() - {field.name for field in fields(Stage)}:
            raise SetupError(f"stages: '{path}' has the unknown keys {sorted(unknown)}")
        if entry['layout'] not in LAYOUTS:
            raise SetupError(f"stages: '{path}' has layout={entry['layout']!r}, none of {LAYOUTS}")
        entry['grid'] = tuple(entry.get('grid', (0, 0)))
        if len(entry['grid']) != 2:
            raise SetupError(f"stages: '{path}' has grid={entry['grid']}, which is not (H, W)")
        return Stage(**entry).measured(sizes, self.input_size)

    def _unknown(self, why: str) -> SetupError:
        return SetupError(
            f'the stages of {self._name} are not known: {why}; write them into the config, for '
            f'example stages={self._suggestion()} (in model: student_stages or teacher_stages; '
            'python tools/print_stages.py --all lists what can be named)'
        )

    def _suggestion(self) -> list[str | dict]:
        """Return four modules that may end the stages, all as shallow as there are enough."""
        level = self.calls['']
        while level:
            level = [child for call in level for child in call.children]
            row = [call for call in level if is_shape(call.output) and call.output.is_feature]
            row = [(call, entry) for call in row if (entry := self._entry_for(call.path))]
            last = {call.output.positions: entry for call, entry in row}
            if len(last) >= 4:
                return list(last.values())[-4:]
            if len(row) >= 4:
                return [row[len(row) * k // 4 - 1][1] for k in range(1, 5)]
        return []

    def _entry_for(self, path: str) -> str | dict | None:
        """Return what to write into `stages` for a module, None if it has no grid."""
        for prefix in (0, 1, 2):
            with contextlib.suppress(SetupError):
                self._measured(path, prefix, channels=None)
                return {'module': path, 'prefix': prefix} if prefix else path
        return None


def _is_vector(inputs: tuple) -> bool:
    """Whether a module was called with one vector per image."""
    return bool(inputs) and is_shape(inputs[0]) and len(inputs[0].dims) == 2


def _built_for(model: nn.Module) -> int | tuple[int, int] | None:
    """Return the image size that a model was built for, where it says so."""
    for module in model.modules():
        for name in ('img_size', 'init_input_size'):
            size = getattr(module, name, None)
            if isinstance(size, int) or (isinstance(size, tuple | list) and len(size) == 2):
                return size
    return None
