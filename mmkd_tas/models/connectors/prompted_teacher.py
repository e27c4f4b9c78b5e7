"""The adaptive feedback prompts of PAT."""

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.utils import apply_to
from timm.layers import SqueezeExcite
from torch import Tensor, nn

from ...errors import SetupError
from ...registry import MODELS
from ...stages import ModelView, Stage
from .base import StageConnector
from .blocks import INIT


class Prompted(NamedTuple):
    """What a prompted teacher says.

    Attributes:
        features: At the ends of its stages, as maps ``(N, C, H, W)``.
        logits: ``(N, C)``.
    """

    features: list[Tensor]
    logits: Tensor


@MODELS.register_module()
class PromptedTeacher(StageConnector):
    r"""Run the teacher once more, with prompts that know how far the student is.

    .. math:: x_k \leftarrow x_k + \beta_k\, \mathrm{Prompt}_k(\mathrm{Fuse}_k([x_k; g_{k+1}])),
        \quad g_k = r_k - f_t^k

    before the teacher's second and every later stage: x is what enters it, and g the gap between
    the student's feature, aligned to the stage (:class:`RegionAttention`), and the frozen
    teacher's, of the same images. The teacher's weights stay frozen, and gradients flow
    through them into the prompts. The first stage is not run again, so a step costs the
    others, forward and backward. Source: Lin et al., "Perspective-Aware Teaching: Adapting
    Knowledge for Heterogeneous Distillation", ICCV 2025, arXiv 2501.08885 (adaptive feedback
    prompts; the block is that of Nie et al., "Pro-tuning", 2022).

    Its inputs are the aligned features, and then all stages of the teacher.

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        init_cfg: mmengine's; by default convolutions Kaiming-normal over the fan-out.

    Raises:
        SetupError: If the inputs are others, or the teacher cannot be run from its first stage on.
    """

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage],
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        if tuple(stages[1:]) != tuple(teacher.stages):
            names = [f'teacher.stage{k + 1}' for k in range(len(teacher.stages))]
            raise SetupError(f"PromptedTeacher: inputs must be ['regions', *{names}]")
        self.stages = teacher.stages
        self.tail = teacher.tail(1)
        self.view = teacher
        self.prompts = nn.ModuleList(itertools.starmap(Prompt, itertools.pairwise(self.stages)))

    def forward_train(self, aligned: list[Tensor], *features: Tensor) -> Prompted:
        """Return the prompted teacher's features and logits.

        Args:
            aligned: What the student makes of each stage of the teacher, ``(N, C, H, W)``.
            features: Of the teacher's stages, in their layouts.
        """
        maps = [stage.to_map(f) for stage, f in zip(self.stages, features, strict=True)]
        gaps = [(ours - theirs).detach() for ours, theirs in zip(aligned, maps, strict=True)]
        seen = maps[:1]  # which no prompt has reached
        with contextlib.ExitStack() as stack:
            for k in range(1, len(self.prompts)):
                hook = self._prompting(k, gaps[k + 1], seen)
                end = self.view.model.get_submodule(self.stages[k].module)
                handle = end.register_forward_hook(hook)
                stack.callback(handle.remove)
            _, logits, last = self.tail(self.prompts[0](features[0], gaps[1]))
        return Prompted([*seen, self.stages[-1].to_map(last)], logits)

    def _prompting(self, k: int, gap: Tensor, seen: list[Tensor]) -> Callable:
        """Return a hook at the end of a stage: note its feature, and pass on the prompted one."""
        stage = self.stages[k]

        def is_feature(x: Any) -> bool:
            return torch.is_tensor(x) and x.shape[1:] == stage.shape

        def prompted(feature: Tensor) -> Tensor:
            seen.append(stage.to_map(feature))
            return self.prompts[k](feature, gap)

        return lambda module, args, output: apply_to(output, is_feature, prompted)


class Prompt(nn.Module):
    """What is added to a feature of the teacher before its next stage.

    Args:
        stage: At whose end the feature is.
        following: The next one, where the gap was measured.
    """

    def __init__(self, stage: Stage, following: Stage) -> None:
        super().__init__()
        self.stage = stage
        channels = stage.channels
        groups = math.gcd(4, channels)
        self.align = nn.Sequential(
            nn.BatchNorm2d(following.channels),
            nn.Conv2d(following.channels, channels, 1, bias=False),
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.Conv2d(channels, channels, 1),
            SqueezeExcite(channels, rd_ratio=1 / 16),
            nn.Conv2d(channels, channels, 1),
        )
        self.prompt = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=groups),
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.Conv2d(channels, channels, 1),
            SqueezeExcite(channels, rd_ratio=1 / 16),
            nn.Conv2d(channels, channels, 1, groups=groups),
        )
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, feature: Tensor, gap: Tensor) -> Tensor:
        """Return the prompted feature, in the layout of the stage.

        Args:
            feature: Likewise.
            gap: At the end of the next stage, ``(N, C', H', W')``.
        """
        grid = self.stage.to_map(feature)
        feedback = F.interpolate(self.align(gap), self.stage.grid, mode='bilinear')
        prompt = self.prompt(self.fuse(torch.cat([grid, feedback.to(grid.dtype)], dim=1)))
        tokens = (grid + self.strength * prompt).flatten(2).mT
        prefix = self.stage.prefix_tokens(feature) if self.stage.prefix else None
        return self.stage.from_tokens(tokens.to(feature.dtype), prefix)
