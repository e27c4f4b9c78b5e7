"""Watching one forward of a model, without a trace left in it."""

import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd

from ..errors import SetupError
from ..outputs import num_classes, vector_of
from .dataflow import Dataflow, Mark, Node, Positions, parts_of
from .stage import Stage


@dataclass(frozen=True)
class Shape:
    """A tensor that was seen: its shape as ``factor * N`` or a fixed number.

    Attributes:
        dims: Per dimension ``(batch factor, fixed size)``, one of them 0.
        dtype: Of the tensor.
    """

    dims: tuple[tuple[int, int], ...]
    dtype: torch.dtype

    @property
    def batched(self) -> bool:
        """Whether any dimension grows with the batch."""
        return any(factor for factor, _ in self.dims)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The fixed sizes after the first dimension."""
        return tuple(fixed for _, fixed in self.dims[1:])

    @property
    def is_feature(self) -> bool:
        """Whether it is a map or a row of tokens, one for each image."""
        return self.dims[:1] == ((1, 0),) and len(self.dims) in (3, 4) and all(self.sizes)

    def placeholder(self, feature: Tensor) -> Tensor:
        """Return zeros for the batch of a feature, on its device, that occupy no memory."""
        size = [factor * len(feature) + fixed for factor, fixed in self.dims]
        return torch.zeros((), dtype=self.dtype, device=feature.device).expand(size)


class _Past:
    def __deepcopy__(self, memo: dict) -> '_Past':
        return self  # what happened does not change


@dataclass(eq=False)
class Call(_Past):
    """One call of a module during a forward.

    Attributes:
        path: Of the module.
        parent: The call within which it happened; None for the model's own.
        began, ended: How far the forward was then.
        children: The calls that happened directly within it, in order.
        inputs: Its arguments without and with names, each tensor replaced by its :class:`Shape`.
        output: Likewise.
        nodes: Of the tensors in its output; none if one of them is changed later.
        of_images: Whether it returns tensors, and all of them depend on the images.
        is_cut: Whether every path to the logits leads through its output.
        stage: What it emits, where a stage may end with it.
    """

    path: str
    parent: 'Call | None'
    began: Mark
    ended: Mark | None = None
    children: list['Call'] = field(default_factory=list)
    inputs: Any = None
    output: Any = None
    nodes: tuple[int, ...] = ()
    of_images: bool = False
    is_cut: bool = False
    stage: Stage | None = None

    @property
    def flops(self) -> int:
        """Floating point operations of the call."""
        return self.ended.flops - self.began.flops

    @property
    def products(self) -> int:
        """Number of its convolutions and products."""
        return self.ended.products - self.began.products

    @property
    def parents(self) -> list['Call']:
        """The calls within which it happened, the innermost first."""
        return [self.parent, *self.parent.parents] if self.parent else []

    @property
    def is_feature(self) -> bool:
        """Whether it returns one tensor, of maps or tokens."""
        return is_shape(self.output) and self.output.is_feature

    @property
    def enters(self) -> Shape | None:
        """The first input that grows with the batch."""
        return next((shape for shape in parts_of(self.inputs, Shape) if shape.batched), None)


@dataclass(eq=False)
class Trace(_Past):
    """What was seen of a forward.

    Attributes:
        image: ``(C, H, W)`` of the images.
        headless: Whether the model says that it has no classes, and returns a feature.
        calls: In the order in which they ended.
        logits: What the model returns: its logits, or that feature.
        logits_call: Of the innermost module that returns them, perhaps in another shape.
        classifiers: Of the modules that make them from the pooled feature, and the dimension
            of the channels in what enters each.
        branches: Whether other modules run for other images: then no stage is found.
    """

    image: tuple[int, int, int]
    headless: bool
    calls: list[Call]
    logits: Shape
    logits_call: Call
    classifiers: list[tuple[Call, int]]
    branches: bool

    @cached_property
    def calls_of(self) -> dict[str, list[Call]]:
        """The calls of each module, in order."""
        found: dict[str, list[Call]] = {}
        for call in self.calls:
            found.setdefault(call.path, []).append(call)
        return found

    @property
    def flops(self) -> int:
        """Floating point operations of the forward, with two images."""
        return self.calls[-1].flops


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode, as it is written, without gradients; leave no trace or hook."""
    states = [vars(module) for module in model.modules()]
    kinds = (dict, OrderedDict, list, set)
    parts = [value for state in states for value in state.values() if type(value) in kinds]
    copies = [(value, value.copy()) for value in (*states, *parts)]
    cuda = [p.device for p in model.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(cuda), torch.no_grad():
        model.eval()
        for module in model.modules():
            module._compiled_call_impl = None
        try:
            yield
        finally:
            for value, copied in copies:
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(copied)


def example(model: nn.Module, image: tuple[int, int, int], batch: int) -> Tensor:
    """Return noise images ``(batch, C, H, W)`` for a model, the same every time."""
    parameter = next(model.parameters())
    images = torch.randn(batch, *image, generator=torch.Generator().manual_seed(0))
    return images.to(parameter.device, parameter.dtype)


def trace(model: nn.Module, input_size: tuple[int, int], named: Collection[str] = ()) -> Trace:
    """Watch which modules a model calls, what they return, and what that is made from.

    Runs fake tensors through the model, which have no numbers: a batch of two and one of
    three, to know what grows with the batch. Where a model asks for numbers, real ones.

    Args:
        model: ``model(images)`` returns logits, see :func:`vector_of`.
        input_size: ``(H, W)`` of the images.
        named: Modules that end a stage because the user says so.

    Raises:
        SetupError: If the model fails on images of that size, or does not return logits.
    """
    name = type(model).__name__
    if next(model.parameters(), None) is None:
        raise SetupError(f'{name} has no parameters, so it is not a classifier')
    first = [m.in_channels for m in model.modules() if isinstance(m, _ConvNd)][:1]
    problems: dict[int, Exception] = {}
    for channels in dict.fromkeys((3, *first, 1)):
        for mode in (_fake, contextlib.nullcontext):
            try:
                runs = [_watch(model, (channels, *input_size), n, mode()) for n in (3, 2)]
                return _trace_of(*runs, (channels, *input_size), num_classes(model) == 0, named)
            except SetupError as error:
                raise SetupError(f'{name}: {error}') from error
            except Exception as error:
                problems[channels] = error
    problem = problems[1 if first == [1] else 3]
    message = ' '.join(str(problem).split()) or type(problem).__name__
    size = 'x'.join(map(str, input_size))
    raise SetupError(
        f'{name} fails on images of {size} pixels ({message}): set '
        'model.input_size (teacher: model.teacher_input.size) to a size that it takes'
    ) from problem


@contextlib.contextmanager
def _fake() -> Iterator[None]:
    """Compute shapes alone; without PyTorch's report of what fails, which is told later."""
    logger = logging.getLogger('torch._subclasses.fake_tensor')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    # Fake tensors register a GPU that is not there. Autograd would start a thread for it in a
    # first backward pass after that, and forked processes could not run one.
    with torch.enable_grad():
        torch.ones((), requires_grad=True).backward()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        logger.setLevel(level)


def _watch(
    model: nn.Module, image: tuple[int, int, int], batch: int, mode: AbstractContextManager
) -> tuple[list[Call], Tensor, Dataflow]:
    """Return the calls in the order in which they ended, the logits, and what made them."""
    stack: list[Call] = []
    ended: dict[Call, list[Tensor]] = {}

    def enter(path: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = Call(path, stack[-1] if stack else None, flow.mark)
        call.inputs = apply_to((args, kwargs), torch.is_tensor, _seen)
        if call.parent:
            call.parent.children.append(call)
        stack.append(call)

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        call = stack.pop()
        call.output, call.ended = apply_to(output, torch.is_tensor, _seen), flow.mark
        ended[call] = parts_of(output, Tensor)

    with undisturbed(model), mode:
        for path, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                module.register_forward_pre_hook(partial(enter, path), with_kwargs=True)
                module.register_forward_hook(leave)
        images = example(model, image, batch)
        with (flow := Dataflow(images)):
            logits = vector_of(model(images), headless=num_classes(model) == 0)
    for call, tensors in ended.items():
        known = [tensor for tensor in tensors if flow.node_of(tensor)]
        call.of_images = 0 < len(known) == len(tensors)
        if all(flow.stays(tensor, call.ended) for tensor in known):
            call.nodes = tuple(flow.node_of(tensor).index for tensor in known)
    return [*ended], logits, flow


def _trace_of(three: tuple, two: tuple, image: tuple, headless: bool, named: Collection) -> Trace:
    """Put together what was seen with three images and with two."""
    (others, other_logits, _), (calls, logits, flow) = three, two
    branches = [call.path for call in calls] != [call.path for call in others]
    for call, other in zip(calls, calls if branches else others, strict=True):
        call.inputs = _merge(call.inputs, other.inputs)
        call.output = _merge(call.output, other.output)
    end = flow.node_of(logits)
    if end is None:
        raise SetupError('what it returns does not depend on its images')
    shape = _merge(_seen(logits), _seen(other_logits))
    classifiers = [] if headless else _classifiers(calls, flow, end, shape.sizes[-1])
    cuts = set() if branches else flow.cuts(end)
    begins = min((call.began.nodes for call, _ in classifiers), default=len(flow.nodes))
    positions = Positions(flow)
    for call in {call.path: call for call in calls if call.path}.values():  # the last of each
        if len(parts_of(call.output, Shape)) == 1:
            call.is_cut = not cuts.isdisjoint(call.nodes) and call.ended.nodes <= begins
            if call.is_cut or call.path in named:
                call.stage = _stage_of(call, flow, positions)
    source = _logits_call(calls, flow, end)
    return Trace(image, headless, calls, shape, source, classifiers, branches)


def _stage_of(call: Call, flow: Dataflow, positions: Positions) -> Stage | None:
    """Return what a call emits, None if its positions are not known."""
    nodes = [flow.nodes[index] for index in call.nodes]
    found = positions(nodes[0]) if nodes and len(nodes[0].shape) in (3, 4) else None
    return None if found is None else Stage.at(call.path, found[0], flow.nodes[0].shape[-1])


def _logits_call(calls: list[Call], flow: Dataflow, end: Node) -> Call:
    nodes = {calls[-1].nodes}
    while len(end.reads) == 1 and not end.weighty:  # what only has another shape
        source = flow.nodes[end.reads[0]]
        if torch.Size(source.shape).numel() != torch.Size(end.shape).numel():
            break
        if source.shape != end.shape:
            nodes.add((source.index,))
        end = source
    return next((call for call in calls if call.nodes in nodes), calls[-1])


def _classifiers(calls: list, flow: Dataflow, end: Node, width: int) -> list[tuple[Call, int]]:
    """Return the calls in which the last products on the way to the logits are."""
    found: dict[Call, int] = {}
    reached = {end.index}
    for node in reversed(flow.nodes):
        if node.index in reached and not node.weighty:
            reached.update(node.reads)
        elif node.index in reached and width in node.shape[1:]:
            call = next(call for call in calls if call.began.nodes <= node.index < call.ended.nodes)
            if call.path and call.enters is not None and call.enters.dims[0] == (1, 0):
                found[call] = 1 if 'conv' in str(node.func) else len(call.enters.dims) - 1
    entries = sorted(found.items(), key=lambda entry: entry[0].began)
    vectors = [(c, d) for c, d in entries if math.prod(c.enters.sizes) == c.enters.dims[d][1]]
    return vectors or entries


def _seen(tensor: Tensor) -> Shape:
    return Shape(tuple((0, size) for size in tensor.shape), tensor.dtype)


def _merge(two: Any, three: Any) -> Any:
    """Make a :class:`Shape` of each pair that was seen with a batch of two and of three."""
    pairs = iter(parts_of(three, Shape))

    def merged(seen: Shape) -> Shape:
        if two is three:  # what is seen with two images alone: the batch is the first dimension
            per_image = seen.dims[:1] == ((0, 2),)
            return replace(seen, dims=((1, 0), *seen.dims[1:])) if per_image else seen
        # 2 * factor + fixed = a, 3 * factor + fixed = b
        sizes = zip(seen.dims, next(pairs).dims, strict=True)
        return Shape(tuple((b - a, 3 * a - 2 * b) for (_, a), (_, b) in sizes), seen.dtype)

    return apply_to(two, is_shape, merged)


def is_shape(value: Any) -> bool:
    """Return whether a value of a :class:`Call` stands for a tensor."""
    return isinstance(value, Shape)


def feature_of(output: Any) -> Any:
    """Return the one tensor, or :class:`Shape`, in what a module returns.

    Raises:
        SetupError: If there is none, or more than one.
    """
    found = parts_of(output, Tensor | Shape)
    if len(found) != 1:
        raise SetupError(
            'a stage must end with a module that returns one feature, and this one returns '
            f'{len(found)} tensors; name another in `stages`'
        )
    return found[0]
