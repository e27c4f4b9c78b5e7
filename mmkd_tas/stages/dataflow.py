"""One forward of a model as a graph of tensor operations, and the positions of what it makes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from mmengine.utils import apply_to
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .stage import in_order


@dataclass(eq=False)
class Node:
    """A tensor that depends on the images, and the operation that made it.

    Attributes:
        index: Number of the node; those it is made from have smaller ones.
        shape: Of the tensor.
        reads: Numbers of the nodes that the operation depends on.
        func: The operation; None for the images.
        args: Its arguments, and then those with names, with a :class:`Node` for every
            tensor that depends on the images.
        which: Number of the tensor among those that the operation returned.
        weighty: Whether the operation is a convolution or a product.
        writes: Whether it changed a tensor in place.
    """

    index: int
    shape: tuple[int, ...]
    reads: tuple[int, ...] = ()
    func: Any = None
    args: tuple = ()
    which: int = 0
    weighty: bool = False
    writes: bool = False


class Mark(NamedTuple):
    """How far a forward is: the numbers of nodes, of FLOPs, and of the products that have them."""

    nodes: int
    flops: int
    products: int


class Dataflow(TorchDispatchMode):
    """Record, while it is entered, every operation on what depends on the images.

    A write in place makes a new node of the whole storage, which later reads through
    any view depend on.

    Args:
        images: Where everything begins, ``(N, C, H, W)``.

    Attributes:
        nodes: In the order in which they were made.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._flops = self._products = 0
        self._node_of: dict[int, Node] = {}
        self._written: dict[int, Node] = {}
        self._alive: list[Tensor] = []  # or an id could be given away twice
        self._note(images)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and note it."""
        kwargs = kwargs or {}
        nodes = [self.node_of(tensor) for tensor in parts_of((args, kwargs), Tensor)]
        reads = tuple(sorted({node.index for node in nodes if node}))
        own = apply_to((args, kwargs), torch.is_tensor, lambda t: self._node_of.get(id(t), t))
        output = func(*args, **kwargs)
        flops = _flops_of(func, args, kwargs, output)
        self._flops += flops
        self._products += flops > 0
        if reads:
            writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
            for which, tensor in enumerate(parts_of(output, Tensor)):
                self._note(tensor, reads, func, (*own[0], own[1]), which, flops > 0, writes)
        return output

    def _note(self, tensor: Tensor, *made: Any) -> None:
        node = Node(len(self.nodes), tuple(tensor.shape), *made)
        self.nodes.append(node)
        self._node_of[id(tensor)] = node
        self._alive.append(tensor)
        if node.writes:
            self._written[_storage(tensor)] = node

    def node_of(self, tensor: Tensor) -> Node | None:
        """Return the node that a tensor now depends on, None if not on the images."""
        found = [self._node_of.get(id(tensor)), self._written.get(_storage(tensor))]
        return max(filter(None, found), key=lambda node: node.index, default=None)

    @property
    def mark(self) -> Mark:
        """How far the forward is."""
        return Mark(len(self.nodes), self._flops, self._products)

    def stays(self, tensor: Tensor, before: Mark) -> bool:
        """Whether nothing writes to a tensor after a mark, nor before to only a part of it."""
        node, storage = self.node_of(tensor), tensor.untyped_storage()
        all_of_it = tensor.numel() * tensor.itemsize == storage.nbytes()
        return node.index < before.nodes and (all_of_it or not node.writes)

    def cuts(self, logits: Node) -> set[int]:
        """Return the numbers of the nodes through which every path to the logits leads.

        A node is one if none of those before it is read by one after it.
        """
        last_read = {logits.index: logits.index}  # by what, of all that leads to the logits
        for index in range(logits.index, -1, -1):
            if index in last_read:
                for read in self.nodes[index].reads:
                    last_read.setdefault(read, index)
        found, reach = set(), 0
        for index in sorted(last_read):
            if reach <= index:
                found.add(index)
            reach = max(reach, last_read[index])
        return found


def parts_of(value: Any, kind: type) -> list:
    """Return what is of a kind in nested containers, in order."""
    found: list = []
    apply_to(value, lambda part: isinstance(part, kind), found.append)
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _flops_of(func: Any, args: tuple, kwargs: dict, output: Any) -> int:
    packet = func._overloadpacket
    if packet not in flop_registry and 'scaled_dot_product' in packet.__name__:
        packet = torch.ops.aten._scaled_dot_product_flash_attention
    if packet not in flop_registry:
        return 0
    return int(flop_registry[packet](*args, **kwargs, out_val=output))


# --- Positions -------------------------------------------------------------------

# Operations that move elements and compute nothing, beside those that return views.
_MOVES = re.compile(
    '_unsafe_view|cat|stack|roll|flip|repeat|repeat_interleave|index|index_select|gather|im2col|'
    'col2im|pixel_shuffle|pixel_unshuffle|channel_shuffle|native_channel_shuffle|slice_scatter|'
    'select_scatter|constant_pad_nd|reflection_pad2d|replication_pad2d'
)
# Whose output has another grid than the input: convolutions, pools, interpolation.
_RESAMPLES = ('conv', 'pool', 'upsample')
_PRODUCTS = ('mm', 'addmm', 'bmm', 'baddbmm', 'linear', 'matmul')
_CONSTANT, _UNKNOWN = -1, -2


class Positions:
    """For each tensor the pixel, ``row * width + column``, that its elements stand for.

    What moves elements moves their positions; a convolution or a pool of stride s takes
    those of every s-th row and column; what computes position by position keeps them. So
    the positions tell what no shape does: which dimension is the channels, how many
    tokens of constants stand in front, and whether the others are in the order of the image.

    Constants have the position -1, padding -2. Where nothing is known, there is None.

    Args:
        flow: The recorded forward.
    """

    def __init__(self, flow: Dataflow) -> None:
        self._nodes = flow.nodes
        height, width = self._nodes[0].shape[2:]
        self._pixels = torch.arange(float(height * width)).view(1, 1, height, width)
        self._known: dict[int, Tensor | None] = {0: self._pixels.expand(self._nodes[0].shape)}

    def __call__(self, node: Node) -> Tensor | None:
        """Return the positions of a tensor, in its shape."""
        # Without recursion: there are models of thousands of operations in a row.
        waiting = [node.index]
        while node.index not in self._known:
            try:
                self._known[waiting[-1]] = self._find(self._nodes[waiting[-1]])
                waiting.pop()
            except KeyError as unknown:  # what it is made from: then that first
                waiting.append(unknown.args[0])
        return self._known[node.index]

    def _find(self, node: Node) -> Tensor | None:
        """Find the positions by those of the arguments, as far as they are needed."""
        name = node.func._overloadpacket.__name__
        returns = node.func._schema.returns
        views = any(r.alias_info and not r.alias_info.is_write for r in returns)
        sources = parts_of(node.args, Node)
        if views or _MOVES.fullmatch(name):
            return _moved(node, {source.index: self._known[source.index] for source in sources})
        if any(kind in name for kind in _RESAMPLES):
            pools = 'pool' in name or (sources[0].index > 0 and max(sources[0].shape[2:]) > 3)
            return self._resampled(self._known[sources[0].index], node.shape, pools)
        if name in _PRODUCTS or 'scaled_dot_product' in name:
            rows = (self._known[s.index] for s in sources if s.shape[:-1] == node.shape[:-1])
            known = (found for found in rows if found is not None)
            kept = next(known, None)
            return None if kept is None else kept.amax(-1, keepdim=True).expand(node.shape)
        best = None
        for source in sources:
            if source.shape == node.shape:
                found = self._known[source.index]
                if found is not None and found.amax() > found.amin():
                    return found
                best = found if best is None else best
        return best

    def _resampled(self, positions: Tensor | None, shape: tuple, pools: bool) -> Tensor | None:
        if positions is None or positions.ndim != len(shape) or len(shape) not in (3, 4):
            return None
        kept = positions.amax(1, keepdim=True)
        for dim in range(2, kept.ndim):  # without what was padded
            others = [other for other in range(kept.ndim) if other != dim]
            kept = kept.index_select(dim, kept.amax(others).gt(_UNKNOWN).nonzero().flatten())
        grid = shape[2:]
        if not kept.numel() or (pools and max(grid) == 1 and max(kept.shape[2:]) > 1):
            return None  # a mean over all positions, or a layer over all, has none
        if any(after > before for before, after in zip(kept.shape[2:], grid, strict=True)):
            # An enlarged map begins anew, if it was one.
            if len(grid) == 1 or not in_order(kept[0, 0], self._pixels.shape[-1]):
                return None
            kept = self._pixels
        for dim, (before, after) in enumerate(zip(kept.shape[2:], grid, strict=True), 2):
            kept = kept.index_select(dim, torch.arange(after) * before // after)
        return kept.expand(shape)


def _moved(node: Node, positions: dict[int, Tensor | None]) -> Tensor | None:
    """Do to the positions what an operation does to its tensors."""
    if all(found is None for found in positions.values()):
        return None

    def stand_in(value: Any) -> Tensor:
        if isinstance(value, Node):
            found = positions[value.index]
            return torch.full(value.shape, float(_UNKNOWN)) if found is None else found.detach()
        return torch.full(value.shape, float(_CONSTANT)) if value.is_floating_point() else value

    *args, kwargs = apply_to(node.args, lambda v: isinstance(v, Node | Tensor), stand_in)
    function: Callable = node.func
    if '_pad' in node.func._overloadpacket.__name__:
        function, args = torch.ops.aten.constant_pad_nd.default, [*args[:2], float(_UNKNOWN)]
    elif node.func in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
        function = torch.ops.aten.reshape.default  # the positions may lie elsewhere in memory
    try:
        return parts_of(function(*args, **kwargs), Tensor)[node.which]
    except Exception:  # as with an index whose numbers are not there
        return None
