"""What each stage of a model costs."""

from dataclasses import dataclass

from .trace import Call
from .view import ModelView


@dataclass
class Cost:
    """Of one stage, or of what comes after the last.

    Attributes:
        parameters: Number of parameters.
        flops: Floating point operations for one image: two for each
            multiplication with an addition, in convolutions, products of
            matrices and attention.
        share: Of the model's flops.
    """

    parameters: int = 0
    flops: int = 0
    share: float = 0.0


def costs_of(view: ModelView) -> list[Cost]:
    """Return what each stage costs from the end of the one before, and then the rest."""
    costs = [Cost() for _ in range(len(view.stages) + 1)]
    ends = [view.calls[stage.module][-1] for stage in view.stages]
    _count_parameters(view, ends, costs)
    total = view.trace.flops
    before = 0
    for cost, flops in zip(costs, [*(end.flops for end in ends), total], strict=True):
        cost.flops = (flops - before) // 2  # the trace is of two images
        cost.share = (flops - before) / max(1, total)
        before = flops
    return costs


def _count_parameters(view: ModelView, ends: list[Call], costs: list[Cost]) -> None:
    stage_of: dict[str, int] = {}
    current = 0

    def visit(call: Call) -> None:
        nonlocal current
        stage_of.setdefault(call.path, current)
        for child in call.children:
            visit(child)
        if call in ends:
            current += 1

    visit(view.calls[''][0])
    for name, parameter in view.model.named_parameters():
        # the innermost module around it that is called (attention does not call all of its own)
        owner = name.rpartition('.')[0]
        while owner not in stage_of:
            owner = owner.rpartition('.')[0]
        costs[stage_of[owner]].parameters += parameter.numel()
