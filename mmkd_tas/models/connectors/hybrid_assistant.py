"""The hybrid assistant of TAS/FBT."""

from collections.abc import Sequence

from torch import Tensor

from ...errors import SetupError
from ...registry import MODELS
from ...stages import Knowledge, ModelView, Stage
from .base import StageConnector
from .blocks import INIT, LocalToGlobal


@MODELS.register_module()
class HybridAssistant(StageConnector):
    r"""A model that is fused of the first stages of one model and the last of the other.

    .. math:: a(x) = \mathrm{head}_m \circ S_m^4 \circ \mathrm{L2G} \circ S_c^3 \circ S_c^2
        \circ S_c^1 (x)

    Which model gives the first stages: where one of the two has maps (a CNN) and the
    other tokens, the one with maps; else the student. The weights are the models' own:
    those of the teacher stay frozen, but gradients flow through them into the
    projector (:class:`LocalToGlobal`) and the student; those of the student are
    trained. Only the projector is new. The feature that the first stages gave in the
    ordinary forward is used again, so a step costs the projector and the last stages
    in addition. Where the last stages want a class token they get their model's own.
    Source: Li et al., "Fuse Before Transfer: Knowledge Fusion for Heterogeneous
    Distillation", ICCV 2025 (its first version: "TAS", arXiv 2410.12342).

    Args:
        student, teacher, stages: See :class:`StageConnector`.
        split: Number of the first stages. The paper finds 3 best.
        first: ``'student'`` or ``'teacher'`` gives them; by default as said above.
        window_size: Of the projector's Swin block, in tokens.
        block: That of the projector, see :class:`LocalToGlobal`.
        init_cfg: mmengine's, of the projector.

    Raises:
        SetupError: If split or first are not understood, or the model that gives the
            last stages cannot be run from there on.
    """

    def __init__(
        self,
        student: ModelView,
        teacher: ModelView,
        stages: Sequence[Stage] = (),
        split: int = 3,
        first: str | None = None,
        window_size: int = 7,
        block: str = 'bottleneck',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(student, teacher, stages, init_cfg or INIT)
        views = {'student': student, 'teacher': teacher}
        if first is None:
            first = 'teacher' if _is_cnn(teacher) and not _is_cnn(student) else 'student'
        if first not in views:
            raise SetupError(f"HybridAssistant: first={first!r} is neither 'student' nor 'teacher'")
        last = views['teacher' if first == 'student' else 'student']
        most = min(len(view.stages) for view in views.values()) - 1
        if split not in range(1, most + 1):
            raise SetupError(f'HybridAssistant: split={split!r} is not between 1 and {most}')
        self.inputs = (f'{first}.stage{split}',)
        self.projector = LocalToGlobal(
            views[first].stage(split), last.stage(split), window_size, block
        )
        self.tail = last.tail(split)
        self.outputs = {
            'pooled': last.source('pooled'),
            'logits': last.source('logits'),
            'feature': last.stages[-1],
        }

    def forward_train(self, feature: Tensor) -> Knowledge:
        """Return the assistant's pooled feature ``(N, D)``, logits ``(N, C)`` and last feature.

        Args:
            feature: Of the first stages, in the layout of the last of them.
        """
        stage = self.tail.stage
        tokens = self.projector(feature)
        if stage.prefix:
            return self.tail(tokens, own_prefix=True)
        return self.tail(stage.from_tokens(tokens))


def _is_cnn(view: ModelView) -> bool:
    return all(stage.layout == 'NCHW' for stage in view.stages)
