"""The rest of a model after one of its stages, by replaying the model's own forward."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import SetupError
from ..outputs import pooled_of, vector_of
from .dataflow import parts_of
from .stage import Stage
from .trace import Call, Trace, example, feature_of, is_shape, undisturbed


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


_RECOMPUTING = {'grad_checkpointing', 'gradient_checkpointing', 'with_cp'}


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
        model: A classifier.
        trace: What was seen of its forward.
        stage: The stage.
        last: The last stage.

    Raises:
        SetupError: If the replay does not give the model's own logits, as with
            a model that hands more than one feature from stage to stage.
    """

    def __init__(self, model: nn.Module, trace: Trace, stage: Stage, last: Stage) -> None:
        self._model, self._trace, self.stage = model, trace, stage
        self._plan: tuple[list, ...] | None = None
        self._end = trace.calls_of[stage.module][-1]
        self._watched = [*(call.path for call, _ in trace.classifiers), last.module]
        self._check()
        self._plan = None  # what it names may be replaced before the training, as by SyncBN

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), '_plan': None}  # which names the modules of the original

    def _planned(self) -> tuple[list, ...]:
        """Return modules: passed over, passing the class token on, running, and watched."""
        if self._plan is None:
            model, trace, stage = self._model, self._trace, self.stage
            passed: list[nn.Module] = []
            skipped: dict[str, list[Call]] = {}
            for call in self._finished_before_the_end():
                module = model.get_submodule(call.path)
                # The class token passes it between its origin and the first block.
                light = isinstance(module, nn.LayerNorm | nn.Dropout | nn.Identity)
                if stage.prefix and light and call is not self._end:
                    passed.append(module)
                else:
                    skipped.setdefault(call.path, []).append(call)
            calls_of = trace.calls_of
            done = (path for path, calls in skipped.items() if len(calls) == len(calls_of[path]))
            idle = tuple(f'{path}.' for path in done)
            running = [m for path, m in model.named_modules() if not path.startswith(idle)]
            named = [(model.get_submodule(path), calls) for path, calls in skipped.items()]
            watched = [model.get_submodule(path) for path in self._watched]
            self._plan = named, passed, running, watched
        return self._plan

    def __call__(self, feature: Tensor, own_prefix: bool = False) -> Knowledge:
        """Run the tail.

        Args:
            feature: In the layout of the stage, at the grid of the stage.
            own_prefix: The feature has no prefix tokens; the model's own class
                token (and others), as they enter its first block, are put in
                front. They do not depend on the images.
        """
        with self._replaying(feature, own_prefix):
            return self._run(feature.new_zeros(()).expand(len(feature), *self._trace.image))

    def _run(self, images: Tensor) -> Knowledge:
        """Run the model, and watch its last stage and what enters its classifiers."""
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
            *classifiers, end = watched = self._planned()[-1]
            for module in classifiers:
                change(module, 'forward', partial(entered, module.forward))
            change(end, 'forward', partial(ended, end.forward))
            for module in watched:
                change(module, '_compiled_call_impl', None)
            logits = vector_of(self._model(images), self._trace.headless)
        dims = [dim for _, dim in self._trace.classifiers]
        return Knowledge(pooled_of(inputs, dims) if inputs else logits, logits, last[-1])

    def _finished_before_the_end(self) -> list[Call]:
        """Return the largest modules that have finished when the stage ends, in order."""

        def of_images(calls: list[Call]) -> Iterator[Call]:
            for call in calls:
                if call.of_images:
                    yield call
                else:  # it has a table, such as positions, that the tail may need too
                    yield from of_images(call.children)

        finished = [self._end]
        call = self._end
        while call.parent is not None:
            siblings = call.parent.children
            finished[:0] = of_images(siblings[: siblings.index(call)])
            call = call.parent
        return finished

    @contextlib.contextmanager
    def _replaying(self, feature: Tensor, own_prefix: bool) -> Iterator[None]:
        """Make the model's next forward start at the end of the stage."""
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

        skipped, passed, running, _ = self._planned()
        with _changes() as change:
            for module, calls in skipped:
                change(module, 'forward', partial(replayed, module.forward, deque(calls)))
            for module in passed:
                change(module, 'training', False)
            for module in running:
                if module._compiled_call_impl is not None:  # knows nothing of the replay
                    change(module, '_compiled_call_impl', None)
                if isinstance(module, _BatchNorm) and module.training:
                    change(module, 'track_running_stats', False)
                # A recomputation in backward would find the replay gone.
                for name in _RECOMPUTING & vars(module).keys():
                    change(module, name, False)
            yield

    def _check(self) -> None:
        """Compare with the model's own forward."""
        recorded: list[Tensor] = []

        def record(module: nn.Module, args: tuple, output: Any) -> None:
            recorded.append(feature_of(output).clone())  # it may be changed in place later

        with undisturbed(self._model):
            self._model.get_submodule(self.stage.module).register_forward_hook(record)
            own = self._run(example(self._model, self._trace.image, 2))
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
