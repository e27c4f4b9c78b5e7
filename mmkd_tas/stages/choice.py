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
from dataclasses import dataclass, field

from torch import nn

from ..errors import SetupError
from .dataflow import Mark
from .stage import Stage
from .trace import Call, Trace

_MOST = 2 / 3
_NEARLY_ALL = 3 / 4


@dataclass(eq=False)
class Point:
    """Where a stage can end: what is emitted there, how far the forward is, the calls that end."""

    stage: Stage
    end: Mark
    is_block: bool  # whether there are two products or more since the point before
    calls: list[Call] = field(default_factory=list)


def choose(seen: Trace, model: nn.Module) -> tuple[Stage, ...]:
    """Return the four stages of a model.

    Raises:
        SetupError: If there are no four points to choose from, or one stage would have nearly
            all of the computation. It says what was found.
    """
    if seen.branches:
        raise SetupError('its forward depends on the numbers in the images')
    cuts = sorted((call for call in seen.calls if call.stage), key=lambda call: call.ended)
    most, after = _widest_gap(cuts, seen.flops)
    if most > _NEARLY_ALL:
        features = [call for call in seen.calls if call.is_cut and call.is_feature]
        if _widest_gap(features, seen.flops)[0] <= _NEARLY_ALL:
            unordered = next(call.path for call in reversed(features) if not call.stage)
            raise SetupError(
                f'the rest of the model is computed from what {unordered!r} returns, but its '
                'tokens are not in the order of the image'
            )
        raise SetupError(
            f'{most:.0%} of the computation come after {after!r} in one piece, '
            'within which no module returns all that the rest of the model is computed from'
        )
    within = _within_units(seen, dict(model.named_modules()))
    outside = [call for call in cuts if call not in within]
    groups = _groups(cuts)
    ends = _four(_of_main_prefix(_groups(outside)), seen.flops) or _four(groups, seen.flops)
    if ends is None:
        points = itertools.chain.from_iterable(groups)
        found = [f'{p.calls[0].path!r} {(p.stage.channels, *p.stage.grid)}' for p in points]
        which = f'only {", ".join(found[:6])} return' if found else 'no module returns'
        raise SetupError(f'{which} all that the rest of the model is computed from')
    chosen: list[Call] = []
    for end in ends:
        later = [call for call in end.calls if not chosen or call.began >= chosen[-1].ended]
        chosen.append(_largest(later or end.calls))
    return tuple(call.stage for call in chosen)


def _widest_gap(calls: list[Call], total: int) -> tuple[float, str]:
    """Return the largest share of the computation between the ends of calls, and after which."""
    ends = [*(call.ended.flops for call in calls[1:]), total]
    gaps = ((end - c.ended.flops, c.path) for c, end in zip(calls, ends, strict=False))
    widest, path = max(gaps, default=(0, ''))
    return widest / max(1, total), path


def _within_units(seen: Trace, modules: dict[str, nn.Module]) -> set[Call]:
    """Return the calls inside of units, and those before the downsampling of a larger part."""
    within: set[Call] = set()
    rows: set[Call] = set()  # what holds, at any depth, a row of parts of one kind
    grids: dict[Call, set] = {}
    for call in seen.calls:  # children come before their parents
        kinds = [type(modules[c.path]) for c in call.children if c.products > 1 and c.stage]
        if len(kinds) > len({*kinds}) or not rows.isdisjoint(call.children):
            rows.add(call)
        inside = [grids[child] for child in call.children]
        grids[call] = set().union(*inside, [call.stage.grid] if call.stage else [])
    for call in reversed(seen.calls):
        parent = call.parent
        if parent in within:
            within.add(call)
        elif parent and parent.stage:
            is_unit = parent.products and parent not in rows and parent.flops < seen.flops / 2
            both = {parent.stage.grid, call.stage.grid} if call.stage else ()
            shrinks_later = len(both) == 2 and grids[parent] == both and parent.began.nodes > 1
            before = call.ended.flops - parent.began.flops
            if is_unit or (shrinks_later and before < parent.flops / 2):
                within.add(call)
    return within


def _groups(calls: list[Call]) -> list[list[Point]]:
    """Return the points at which calls end, as long as their grids do not grow, by grid."""
    points: dict[tuple, Point] = {}
    last = None
    for call in calls:
        stage, end = call.stage, call.ended
        key = (end.flops, stage.prefix, stage.channels, stage.grid)
        if key not in points and (last is None or stage.tokens <= last.stage.tokens):
            # The first is the stem, whatever it is made of.
            is_block = last is not None and end.products - last.end.products >= 2
            last = points[key] = Point(stage, end, is_block)
        if key in points:
            points[key].calls.append(call)
    by_grid = itertools.groupby(points.values(), lambda point: point.stage.grid)
    return [[*group] for _, group in by_grid]


def _of_main_prefix(groups: list[list[Point]]) -> list[list[Point]]:
    """Return the points that have the prefix tokens of most of the computation at their grid."""
    kept, before = [], 0
    for group in groups:
        costs: Counter[int] = Counter()
        for point in group:
            costs[point.stage.prefix] += point.end.flops - before
            before = point.end.flops
        main = max(costs, key=costs.__getitem__)
        kept.append([point for point in group if point.stage.prefix == main])
    return kept


def _four(groups: list[list[Point]], total: int) -> list[Point] | None:
    """Return the four points that end the stages, None if there are too few."""
    points = [point for group in groups for point in group]
    groups = [_to_the_last_block(group) for group in groups][-4:]
    with_blocks = [any(point.is_block for point in group) for group in groups]
    if True in with_blocks:
        groups = groups[with_blocks.index(True) :]
    if not groups:
        return None
    *earlier, last = groups
    blocks = [point for point in last if point.is_block]
    share = last[-1].end.flops - (earlier[-1][-1].end.flops if earlier else 0)
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


def _in_proportion(blocks: list[Point]) -> list[Point]:
    count = len(blocks)
    ends = [count]
    for least, twelfths in ((3, 10), (2, 4), (1, 2)):
        ends.insert(0, max(least, min(round(count * twelfths / 12), ends[0] - 1)))
    return [blocks[end - 1] for end in ends[:-1]]


def _half(ends: list[Point], points: list[Point]) -> Point | None:
    """Return the point nearest to half of the most expensive stage that can be divided."""

    def depth_and_distance(point: Point) -> tuple:
        depth = min(call.path.count('.') for call in point.calls)
        return depth, abs(2 * point.end.flops - start - stop)

    stages = itertools.pairwise([0, *(end.end.flops for end in ends)])
    for start, stop in sorted(stages, key=lambda stage: stage[0] - stage[1]):
        inside = [p for p in points if start < p.end.flops < stop]
        if inside := [p for p in inside if p.is_block] or inside:
            return min(inside, key=depth_and_distance)
    return None


def _largest(calls: list[Call]) -> Call:
    """Return the largest call, and of equal ones the outermost."""
    largest = max(calls, key=lambda call: (call.flops, -call.path.count('.')))
    if largest.children:
        return largest
    # A bare convolution ends with the normalisation and activation after it.
    return max(calls, key=lambda call: (call.ended, -call.path.count('.')))
