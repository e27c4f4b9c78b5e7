"""The rest of a model after one of its stages, by replaying the model's own forward."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import SetupError
from ..outputs import pooled_of, vector_of
from .dataflow import parts_of
from .stage import Stage
from .trace import Call, Shape, example, feature_of, is_shape, undisturbed

if TYPE_CHECKING:
    from .view import ModelView


class Knowledge(NamedTuple):
    """What a model knows of a batch.

    Attributes:
        pooled: The final feature, pooled over the positions, ``(N, D)``: the
            input of the module that makes the logits.
        logits: ``(N, C)``; of a model that has no head, the pooled feature.
        feature: At the end of the model's last stage, in its layout.
    """

    pooled: Tensor
    logits: Tensor
    feature: Tensor


_RECOMPUTING = ('grad_checkpointing', 'gradient_checkpointing', 'with_cp')


class Tail:
    """What runs after a stage of a model: feature -> (pooled feature, logits).

    The model's own forward runs, with its own weights. The modules that have
    finished when the stage ends are passed over: the last of them returns the
    given feature, the others placeholders that occupy no memory. So nothing
    before the stage computes, draws random numbers or updates statistics;
    gradients flow into the feature and into the weights of the tail. BatchNorm
    layers of the tail normalise as they would, but keep their running
    statistics: the model's ordinary forward updates those.

    Args:
        view: Of the model.
        stage: Its stage.

    Raises:
        SetupError: If the replay does not give the model's own logits, as with
            a model that hands more than one feature from stage to stage.
    """

    def __init__(self, view: 'ModelView', stage: Stage) -> None:
        self._view = view
        self.stage = stage
        self._image = (view.channels, *view.input_size)
        self._end = view.calls[stage.module][-1]
        finished = self._finished_before_the_end()
        self._passed = [call for call in finished if self._on_the_way_of_the_prefix(call)]
        self._skipped = [call for call in finished if call not in self._passed]
        self._check()

    def __call__(self, feature: Tensor, own_prefix: bool = False) -> Knowledge:
        """Run the tail.

        Args:
            feature: In the layout of the stage, at the grid of the stage.
            own_prefix: The feature has no prefix tokens; the model's own class
                token (and others), as they enter its first block, are put in
                front. They do not depend on the images.
        """
        with self._replaying(feature, own_prefix):
            return self._run(feature.new_zeros(()).expand(len(feature), *self._image))

    def _run(self, images: Tensor) -> Knowledge:
        """Run the model, and watch its last stage and what enters its classifiers."""
        view, plan = self._view, self._plan
        last: list[Tensor] = []
        inputs: list[Tensor] = []

        def entered(own: Callable, *args: Any, **kwargs: Any) -> Any:
            inputs.append(parts_of((args, kwargs), Tensor)[0])
            return own(*args, **kwargs)

        def ended(own: Callable, *args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs)
            last.append(feature_of(output))
            return output

        with _changes() as change:
            for module in plan.classifiers:
                change(module, 'forward', partial(entered, module.forward))
            change(plan.end, 'forward', partial(ended, plan.end.forward))
            for module in (*plan.classifiers, plan.end):
                change(module, '_compiled_call_impl', None)
            logits = vector_of(view.model(images), view.headless)
        pooled = pooled_of(inputs, view.classifier_dims) if inputs else logits
        return Knowledge(pooled, logits, last[-1])

    @cached_property
    def _plan(self) -> '_Plan':
        """What to do to the modules of the model in a replay."""
        view = self._view
        skipped: dict[str, list[Call]] = {}
        for call in self._skipped:
            skipped.setdefault(call.path, []).append(call)
        idle = [
            f'{path}.' for path, calls in skipped.items() if len(calls) == len(view.calls[path])
        ]
        running = [
            module
            for path, module in view.model.named_modules()
            if not any(path.startswith(start) for start in idle)
        ]
        return _Plan(
            skipped=[(view.model.get_submodule(path), calls) for path, calls in skipped.items()],
            passed=[self._module(call) for call in self._passed],
            running=running,
            norms=[module for module in running if isinstance(module, _BatchNorm)],
            recomputing=[(m, name) for m in running for name in _RECOMPUTING if hasattr(m, name)],
            classifiers=[view.model.get_submodule(path) for path in view.classifiers],
            end=view.model.get_submodule(view.stages[-1].module),
        )

    def __getstate__(self) -> dict:
        """Leave the plan out: a copy may be of another copy of the model."""
        return {key: value for key, value in vars(self).items() if key != '_plan'}

    def _finished_before_the_end(self) -> list[Call]:
        """Return the largest modules that have finished when the stage ends, in order."""
        finished = [self._end]
        call = self._end
        while call.parent is not None:
            siblings = call.parent.children
            # What does not grow with the batch is a table, such as a position
            # bias, that the tail may need too.
            before = siblings[: siblings.index(call)]
            finished[:0] = [c for c in before if any(s.batched for s in parts_of(c.output, Shape))]
            call = call.parent
        return finished

    def _on_the_way_of_the_prefix(self, call: Call) -> bool:
        """Whether the class token passes a module between its origin and the first block."""
        light = isinstance(self._module(call), nn.LayerNorm | nn.Dropout | nn.Identity)
        return bool(self.stage.prefix) and light and call is not self._end

    def _module(self, call: Call) -> nn.Module:
        return self._view.model.get_submodule(call.path)

    @contextlib.contextmanager
    def _replaying(self, feature: Tensor, own_prefix: bool) -> Iterator[None]:
        """Make the model's next forward start at the end of the stage."""
        plan = self._plan
        prefix: list[Tensor] = []

        def replayed(own: Callable, queue: deque[Call], *args: Any, **kwargs: Any) -> Any:
            if not queue:
                return own(*args, **kwargs)
            call, first = queue.popleft(), args[0] if args else None
            if torch.is_tensor(first) and first.shape == (len(feature), *self.stage.shape):
                prefix.append(first[:, : self.stage.prefix])
            if call is not self._end:
                return apply_to(call.output, is_shape, lambda s: s.placeholder(feature))
            given = self.stage.from_tokens(feature, prefix[0]) if own_prefix else feature
            return apply_to(call.output, is_shape, lambda _: given)

        with _changes() as change:
            for module, calls in plan.skipped:
                change(module, 'forward', partial(replayed, module.forward, deque(calls)))
            for module in plan.passed:
                change(module, 'training', False)
            for module in plan.running:
                if module._compiled_call_impl is not None:  # knows nothing of the replay
                    change(module, '_compiled_call_impl', None)
            for module in plan.norms:
                if module.training:
                    change(module, 'track_running_stats', False)
            # A recomputation in backward would find the replay gone.
            for module, name in plan.recomputing:
                if getattr(module, name):
                    change(module, name, False)
            yield

    def _check(self) -> None:
        """Compare with the model's own forward."""
        model, recorded = self._view.model, []

        def record(module: nn.Module, args: tuple, output: Any) -> None:
            recorded.append(feature_of(output).clone())  # it may be changed in place later

        with undisturbed(model):
            model.get_submodule(self.stage.module).register_forward_hook(record)
            own = self._run(example(model, self._image, 2))
            feature = recorded[-1]
            own, replayed = (torch.cat(known[:2], dim=1) for known in (own, self(feature)))
            if not torch.allclose(replayed, own, rtol=1e-3, atol=1e-3 * float(own.std())):
                raise SetupError(
                    f"the part of the model after '{self.stage.module}' does not follow from its "
                    'output alone; choose other `stages`, or another `split`'
                )
            if self.stage.prefix:
                try:
                    self(self.stage.to_tokens(feature), own_prefix=True)
                except IndexError as error:
                    raise SetupError(
                        f"the prefix tokens of '{self.stage.module}' are not there before the "
                        'first block; choose other `stages`, or another `split`'
                    ) from error


class _Plan(NamedTuple):
    """Modules of a model that a tail deals with, as long as the model is the same object."""

    skipped: list[tuple[nn.Module, list[Call]]]
    passed: list[nn.Module]
    running: list[nn.Module]
    norms: list[nn.Module]
    recomputing: list[tuple[nn.Module, str]]
    classifiers: list[nn.Module]
    end: nn.Module


@contextlib.contextmanager
def _changes() -> Iterator[Callable[[nn.Module, str, Any], None]]:
    """Yield what gives a module another attribute until the end."""
    before: list[tuple[dict, str, Any]] = []

    def change(module: nn.Module, name: str, value: Any) -> None:
        own = vars(module)
        before.append((own, name, own.get(name, _changes)))
        own[name] = value

    try:
        yield change
    finally:
        for own, name, value in reversed(before):
            if value is _changes:
                del own[name]
            else:
                own[name] = value
