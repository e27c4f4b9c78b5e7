"""What each stage of a model costs."""

from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .trace import Call, example, hooked, undisturbed
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
    _count_parameters(view, costs)
    _count_flops(view, costs)
    return costs


def _count_parameters(view: ModelView, costs: list[Cost]) -> None:
    ends = [view.calls[stage.module][-1] for stage in view.stages]
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


def _count_flops(view: ModelView, costs: list[Cost]) -> None:
    model = view.model
    totals: list[int] = []

    def note(module: nn.Module, args: tuple, output: object) -> None:
        totals.append(counter.get_total_flops())

    with undisturbed(model), hooked() as handles:
        for stage in view.stages:
            handles.append(model.get_submodule(stage.module).register_forward_hook(note))
        with FlopCounterMode(display=False) as counter:
            model(example(model, view.input_size, 1))
        totals.append(counter.get_total_flops())
    for cost, before, total in zip(costs, [0, *totals[:-1]], totals, strict=True):
        cost.flops = total - before
        cost.share = cost.flops / max(1, totals[-1])
