"""Which of the points that a model's stages can end at are its four stages.

What is a point is exact, see :class:`Dataflow`. Which four are taken is a matter of taste:

- Points within a *unit*, such as a block, a patch merging or a convolution with its
  normalisation, do not count.
- Of each of the last four grids, the last point. A stem without a block is no stage.
- Where most of the computation is in the last grid, as in a stack of equal blocks, that
  is divided at 2/12, 4/12, 10/12 and 12/12: the proportions of Swin-T's depths 2, 2, 6, 2.
- Where there are fewer than four, the one with the most computation is divided.
- Of the modules that end there, the largest that begins after the previous stage.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ..errors import SetupError
from .stage import Stage
from .trace import Call, Trace

_STEM = 1 / 3  # of the computation: more is no mere stem
_MOST = 2 / 3
_NEARLY_ALL = 3 / 4


@dataclass(eq=False)
class Point:
    """Where a stage can end.

    Attributes:
        stage: What is emitted there.
        flops, products: Of the forward up to there.
        calls: The calls that end there.
        is_block: Whether there are two products or more since the point before.
    """

    stage: Stage
    flops: int
    products: int
    calls: list[Call] = field(default_factory=list)
    is_block: bool = False


def choose(seen: Trace, model: nn.Module) -> tuple[Stage, ...]:
    """Return the four stages of a model.

    Raises:
        SetupError: If there are no four points to choose from, or one stage would have nearly
            all of the computation. It says what was found.
    """
    within = _within_units(seen, dict(model.named_modules()))
    every = [call for call in seen.calls if call.stage is not None]
    outside = _points([call for call in every if call not in within])
    points = _points(every)
    for candidates in (_of_main_prefix(outside), outside, points):
        if ends := _four(candidates, seen.flops):
            break
    else:
        if seen.branches:
            raise SetupError('its forward depends on the numbers in the images')
        found = [f'{p.calls[0].path!r} {(p.stage.channels, *p.stage.grid)}' for p in points[:6]]
        which = f'only {", ".join(found)} return' if found else 'no module returns'
        raise SetupError(f'{which} all that the rest of the model is computed from')
    cuts = sorted((call for call in seen.calls if call.is_cut), key=lambda call: call.ended)
    upto = [*(call.flops for call in cuts[1:]), seen.flops]
    gaps = {end - call.flops: call.path for call, end in zip(cuts, upto, strict=True)}
    if (most := max(gaps)) > _NEARLY_ALL * seen.flops:
        raise SetupError(
            f'{most / seen.flops:.0%} of the computation come after {gaps[most]!r} in one piece, '
            'within which no module returns all that the rest of the model is computed from'
        )
    chosen: list[Call] = []
    for end in ends:
        chosen.append(_largest(end.calls, chosen[-1].ended if chosen else 0))
    return tuple(call.stage for call in chosen)


def _within_units(seen: Trace, modules: dict[str, nn.Module]) -> set[Call]:
    """Return the calls inside of units, and those before the downsampling of a larger part."""
    within: set[Call] = set()
    rows: set[Call] = set()  # what holds, at any depth, a row of parts of one kind
    grids: dict[Call, set] = {}
    for call in seen.calls:  # children come before their parents
        kinds = [type(modules[c.path]) for c in call.children if c.own_products > 1 and c.stage]
        if len(kinds) > len({*kinds}) or not rows.isdisjoint(call.children):
            rows.add(call)
        inside = [grids[child] for child in call.children]
        grids[call] = set().union(*inside, [call.stage.grid] if call.stage else [])
    for call in reversed(seen.calls):
        parent = call.parent
        is_unit = parent and parent.stage and parent.own_products and parent not in rows
        if parent in within or (is_unit and parent.own_flops < seen.flops / 2):
            within.add(call)
        while call.stage and parent and parent.began > 1:
            ends = parent.stage and parent.stage.grid
            if ends != call.stage.grid and grids[parent] == {ends, call.stage.grid}:
                flops = call.flops - parent.flops + parent.own_flops
                products = call.products - parent.products + parent.own_products
                if products < 2 or flops < parent.own_flops / 2:
                    within.add(call)
            parent = parent.parent
    return within


def _points(calls: list[Call]) -> list[Point]:
    """Return the points at which calls end, in order, as long as their grids do not grow."""
    points: dict[tuple, Point] = {}
    for call in sorted(calls, key=lambda call: (call.nodes, call.ended)):
        stage = call.stage
        key = (call.flops, stage.prefix, stage.channels, stage.grid)
        points.setdefault(key, Point(stage, call.flops, call.products)).calls.append(call)
    found: list[Point] = []
    for point in points.values():
        if not found or point.stage.tokens <= found[-1].stage.tokens:
            # The first is the stem, whatever it is made of.
            point.is_block = bool(found) and point.products - found[-1].products >= 2
            found.append(point)
    return found


def _of_main_prefix(points: list[Point]) -> list[Point]:
    """Return the points of each grid that have the prefix tokens of most of its computation."""
    kept: list[Point] = []
    before = 0
    for group in _groups(points):
        costs: Counter[int] = Counter()
        for point in group:
            costs[point.stage.prefix] += point.flops - before
            before = point.flops
        main = max(costs, key=costs.__getitem__)
        kept += [point for point in group if point.stage.prefix == main]
    return kept


def _groups(points: list[Point]) -> list[list[Point]]:
    return [[*group] for _, group in itertools.groupby(points, lambda point: point.stage.grid)]


def _four(points: list[Point], total: int) -> list[Point] | None:
    """Return the four points that end the stages, None if there are too few."""
    groups = [_to_the_last_block(group) for group in _groups(points)][-4:]
    while len(groups) > 1 and _is_stem(groups, total):
        del groups[0]
    if not groups:
        return None
    *earlier, last = groups
    blocks = [point for point in last if point.is_block]
    share = last[-1].flops - (earlier[-1][-1].flops if earlier else 0)
    if len(blocks) >= 4 and share > _MOST * total:
        return [*_in_proportion(blocks), last[-1]]
    ends = [group[-1] for group in groups]
    while len(ends) < 4:
        if (end := _half(ends, points)) is None:
            return None
        ends = sorted([*ends, end], key=points.index)
    return ends


def _to_the_last_block(group: list[Point]) -> list[Point]:
    """Return a group without what comes after its last block, if that widens nothing."""
    last = max((i for i, point in enumerate(group) if point.is_block), default=len(group) - 1)
    if group[-1].stage.channels > group[last].stage.channels:
        return group
    return group[: last + 1]


def _is_stem(groups: list[list[Point]], total: int) -> bool:
    first, *later = [any(point.is_block for point in group) for group in groups]
    return not first and any(later) and groups[0][-1].flops < _STEM * total


def _in_proportion(blocks: Sequence[Point]) -> list[Point]:
    count = len(blocks)
    ends = [count]
    for least, twelfths in ((3, 10), (2, 4), (1, 2)):
        ends.insert(0, max(least, min(round(count * twelfths / 12), ends[0] - 1)))
    return [blocks[end - 1] for end in ends[:-1]]


def _half(ends: list[Point], points: list[Point]) -> Point | None:
    """Return the point nearest to half of the most expensive stage that can be divided."""
    stages = itertools.pairwise([0, *(end.flops for end in ends)])
    for start, stop in sorted(stages, key=lambda stage: stage[0] - stage[1]):
        inside = [p for p in points if start < p.flops < stop]
        inside = [p for p in inside if p.is_block] or inside
        if inside:
            return min(inside, key=lambda p: (_depth(p.calls), abs(2 * p.flops - start - stop)))
    return None


def _depth(calls: Sequence[Call]) -> int:
    return min(call.path.count('.') for call in calls)


def _largest(calls: list[Call], before: int) -> Call:
    """Return the largest call that begins after the previous stage, else the smallest."""
    later = [call for call in calls if call.began >= before]
    if not later:
        return min(calls, key=lambda call: call.own_flops)
    largest = max(later, key=lambda call: (call.own_flops, -_depth([call]), -call.ended))
    if largest.children:
        return largest
    # A bare convolution ends with the normalisation and activation after it.
    return max(later, key=lambda call: (call.ended, -_depth([call])))
