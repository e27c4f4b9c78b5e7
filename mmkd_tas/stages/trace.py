"""Watching one forward of a model, without a trace left in it."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..errors import SetupError


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
    def is_feature(self) -> bool:
        """Whether it is a map or a row of tokens, one for each image."""
        return len(self.dims) in (3, 4) and self.dims[0] == (1, 0)

    @property
    def positions(self) -> int:
        """Number of positions of a feature ``(N, C, H, W)`` or ``(N, L, C)``."""
        sizes = [fixed for _, fixed in self.dims]
        return math.prod(sizes[2:]) if len(sizes) == 4 else sizes[1]

    def placeholder(self, batch: int, device: torch.device) -> Tensor:
        """Return a tensor of zeros of this shape that occupies no memory."""
        size = [factor * batch + fixed for factor, fixed in self.dims]
        return torch.zeros((), dtype=self.dtype, device=device).expand(size)


@dataclass
class Call:
    """One call of a module during a forward.

    Attributes:
        path: Of the module.
        parent: The call within which it happened; None for the model's own.
        children: The calls that happened directly within it, in order.
        inputs: Its positional arguments, each tensor replaced by its :class:`Shape`.
        output: Likewise.
        makes_logits: Whether its output is the model's output.
    """

    path: str
    parent: 'Call | None'
    children: list['Call'] = field(default_factory=list)
    inputs: Any = None
    output: Any = None
    makes_logits: bool = False

    def __deepcopy__(self, memo: dict) -> 'Call':
        """Return itself: what happened does not change."""
        return self


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode, without gradients, and leave no trace of it."""
    modes = [(module, module.training) for module in model.modules()]
    cuda = [p.device for p in model.parameters() if p.is_cuda][:1]
    with torch.random.fork_rng(cuda), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def hooked() -> Iterator[list]:
    """Collect handles of hooks in a list; remove them all at the end."""
    handles: list = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def example(model: nn.Module, input_size: tuple[int, int], batch: int) -> Tensor:
    """Return noise images for a model, the same every time."""
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    channels = channels_of(model, input_size)
    images = torch.randn(batch, channels, *input_size, generator=generator)
    return images.to(parameter.device, parameter.dtype)


class _FirstLayer(Exception):  # noqa: N818 (no error, but a way out)
    """Ends a forward with the number of image channels that its first layer implies."""


def channels_of(model: nn.Module, input_size: tuple[int, int]) -> int:
    """Return how many channels the images of a model have.

    It gets images of three channels, or, where they do not reach a layer that has weights, of
    one. What that layer takes, over what it is given, tells the number, also where it sees the
    images folded into patches. Where nothing tells, three.
    """
    parameter = next(model.parameters())
    for tried in (3, 1):
        images = parameter.new_zeros(1, tried, *input_size)

        def stop(module: nn.Module, args: tuple, tried: int = tried) -> None:
            dim, wanted = _taken(module)
            found, rest = divmod(tried * wanted, args[0].shape[dim])
            raise _FirstLayer(3 if rest else found)

        with undisturbed(model), hooked() as handles:
            handles += [
                module.register_forward_pre_hook(stop)
                for module in model.modules()
                if _taken(module) is not None
            ]
            try:
                model(images)
            except _FirstLayer as first:
                return first.args[0]
            except Exception:  # of images with other channels than it takes
                continue
    return 3


def _taken(module: nn.Module) -> tuple[int, int] | None:
    """Return which dimension of its input the weights of a layer fix, and to what size."""
    if isinstance(module, _ConvNd):
        return 1, module.in_channels
    if isinstance(module, _NormBase):
        return 1, module.num_features
    if isinstance(module, nn.Linear):
        return -1, module.in_features
    if isinstance(module, nn.LayerNorm):
        return -1, module.normalized_shape[-1]
    return None


def trace(model: nn.Module, input_size: tuple[int, int]) -> tuple[list[Call], Shape]:
    """Watch which modules a model calls, and what they return.

    Runs a batch of one and a batch of two, to know what grows with the batch.

    Args:
        model: A classifier; ``model(images)`` returns logits.
        input_size: ``(H, W)`` of the images.

    Returns:
        The calls in the order in which they ended, and the shape of the logits.

    Raises:
        SetupError: If the model fails on images of that size, or does not
            return logits ``(N, C)``.
    """
    runs = []
    for batch in (1, 2):
        with undisturbed(model):
            runs.append(_watch(model, example(model, input_size, batch)))
    (calls, logits), (twice, logits_twice) = runs
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SetupError(
            f'{type(model).__name__} returns {found} and not logits (N, C): a classifier with a '
            'head is needed'
        )
    if [call.path for call in calls] != [call.path for call in twice]:
        raise SetupError(f'{type(model).__name__} runs other modules for another batch size')
    for call, again in zip(calls, twice, strict=True):
        call.inputs = _merge(call.inputs, again.inputs)
        call.output = _merge(call.output, again.output)
    return calls, _merge(logits, logits_twice)


def _watch(model: nn.Module, images: Tensor) -> tuple[list[Call], Any]:
    stack: list[Call] = []
    ended: list[tuple[Call, Any]] = []

    def enter(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            call = Call(path, parent=stack[-1] if stack else None)
            call.inputs = apply_to(args, torch.is_tensor, _meta)
            if call.parent:
                call.parent.children.append(call)
            stack.append(call)

        return hook

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        call = stack.pop()
        call.output = apply_to(output, torch.is_tensor, _meta)
        ended.append((call, output))

    with hooked() as handles:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(path)))
            handles.append(module.register_forward_hook(leave))
        try:
            logits = model(images)
        except Exception as error:
            channels, *sides = images.shape[1:]
            size = 'x'.join(map(str, sides))
            message = ' '.join(str(error).split()) or type(error).__name__
            raise SetupError(
                f'{type(model).__name__} fails on images of {size} pixels with {channels} '
                f'channels ({message}): set '
                'model.input_size (teacher: model.teacher_input.size) to a size that it takes'
            ) from error
    for call, output in ended:
        call.makes_logits = same_tensor(output, logits)
    return [call for call, _ in ended], logits


def same_tensor(a: Any, b: Any) -> bool:
    """Return whether two values are the same tensor, or views of all of it."""
    tensors = torch.is_tensor(a) and torch.is_tensor(b)
    return tensors and a.data_ptr() == b.data_ptr() and a.shape == b.shape


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device='meta')


def _merge(one: Any, two: Any) -> Any:
    """Make a :class:`Shape` of each pair of tensors for a batch of one and of two."""
    of_two: list[Tensor] = []
    apply_to(two, torch.is_tensor, of_two.append)
    pairs = iter(of_two)

    def shape(tensor: Tensor) -> Shape:
        # factor + fixed = a, 2 * factor + fixed = b
        sizes = zip(tensor.shape, next(pairs).shape, strict=True)
        return Shape(tuple((b - a, 2 * a - b) for a, b in sizes), tensor.dtype)

    return apply_to(one, torch.is_tensor, shape)


def is_shape(value: Any) -> bool:
    """Return whether a value of a :class:`Call` stands for a tensor."""
    return isinstance(value, Shape)


def feature_of(output: Any) -> Any:
    """Return the one tensor, or batched :class:`Shape`, in what a module returns.

    Raises:
        SetupError: If there is none, or more than one.
    """
    found: list = []
    apply_to(output, lambda x: torch.is_tensor(x) or (is_shape(x) and x.batched), found.append)
    if len(found) != 1:
        raise SetupError(
            'a stage must end with a module that returns one feature, and this one returns '
            f'{len(found)} tensors; name another in `stages`'
        )
    return found[0]
