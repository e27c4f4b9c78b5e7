"""What each stage of a model costs."""

import itertools
from dataclasses import dataclass

from .view import ModelView


@dataclass
class Cost:
    """Of one stage, or of what comes after the last.

    Attributes:
        parameters: Number of parameters.
        flops: Floating point operations for one image: two for each multiplication with
            an addition, in convolutions, products of matrices and attention.
        share: Of the model's flops.
    """

    parameters: int = 0
    flops: int = 0
    share: float = 0.0


def costs_of(view: ModelView) -> list[Cost]:
    """Return what each stage costs from the end of the one before, and then the rest."""
    ends = [view.trace.calls_of[stage.module][-1] for stage in view.stages]
    total = view.trace.flops
    upto = [0, *(end.ended.flops for end in ends), total]
    costs = [  # the trace is of two images
        Cost(flops=(after - before) // 2, share=(after - before) / max(1, total))
        for before, after in itertools.pairwise(upto)
    ]
    for name, parameter in view.model.named_parameters():
        # the innermost module around it that is called (attention does not call all of its own)
        owner = name
        while owner not in view.trace.calls_of:
            owner = owner.rpartition('.')[0]
        began = view.trace.calls_of[owner][0].began
        costs[sum(end.ended <= began for end in ends)].parameters += parameter.numel()
    return costs
