"""The features of teacher, assistant and student, and how alike they are."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmrazor.models.task_modules import RecorderManager
from torch import Tensor

from ..models import CrossArchDistill, HybridAssistant
from ..stages import StageOutputsRecorder, view_of

_GRID = 8


def unbiased_hsic(features: Sequence[Tensor]) -> Tensor:
    r"""Return the HSIC of each two of M features of the same n images, ``(M, M)``, float64.

    .. math:: \mathrm{HSIC}_1(K, L) = \frac{1}{n (n - 3)} \Big[ \mathrm{tr}(\tilde K \tilde L)
        + \frac{1^\top \tilde K 1 \; 1^\top \tilde L 1}{(n - 1)(n - 2)}
        - \frac{2}{n - 2} 1^\top \tilde K \tilde L 1 \Big], \quad K = X X^\top

    where a tilde sets the diagonal to zero. Computed as the scalar product of the U-centred
    matrices (Székely, Rizzo, 2014), which is the same. Source: Song et al., "Feature Selection
    via Dependence Maximization", JMLR 2012, eq. 4 and 5.

    Args:
        features: Of any shapes ``(n, ...)``, n at least 4.
    """
    n = len(features[0])
    rows = []
    for feature in features:
        x = feature.detach().flatten(1).cpu().double()
        x = x - x.mean(0)  # changes nothing but the rounding
        gram = (x @ x.T).fill_diagonal_(0)
        sums = gram.sum(1) / (n - 2)
        centred = gram - sums - sums[:, None] + sums.sum() / (n - 1)
        rows.append(centred.fill_diagonal_(0).flatten())
    stacked = torch.stack(rows)
    return stacked @ stacked.T / (n * (n - 3))


class MinibatchCKA:
    r"""Centred kernel alignment of M features, linear, over mini-batches.

    .. math:: \mathrm{CKA} = \frac{\sum_b \mathrm{HSIC}_1(K_b, L_b)}
        {\sqrt{\sum_b \mathrm{HSIC}_1(K_b, K_b)} \sqrt{\sum_b \mathrm{HSIC}_1(L_b, L_b)}}

    HSIC_1 is unbiased, so that the sums do not depend on the size of the batches but by
    chance. Batches count by their number of images. Source: Nguyen, Raghu, Kornblith, "Do Wide
    and Deep Networks Learn the Same Things?", ICLR 2021, eq. 2 and 3.
    """

    def __init__(self) -> None:
        self.images = 0
        self.total: Tensor | float = 0.0

    def update(self, features: Sequence[Tensor]) -> None:
        """Add a batch: M features of shapes ``(n, ...)``, always in the same order."""
        self.images += len(features[0])
        self.total = self.total + len(features[0]) * unbiased_hsic(features)

    def compute(self) -> Tensor:
        """Return the CKA of each two features, ``(M, M)``, float64, between -1 and 1.

        1: the same but for rotation and scale; about 0: unrelated, or one of the two is the
        same for all images.
        """
        hsic = self.total / self.images
        norm = hsic.diagonal().sqrt()
        return (hsic / (norm * norm[:, None])).nan_to_num(0)


def coarse(feature: Tensor) -> Tensor:
    """Return a map ``(N, C, H, W)`` averaged to at most 8 x 8 positions; vectors as they are."""
    if feature.ndim == 2:
        return feature
    return F.adaptive_avg_pool2d(feature, [min(side, _GRID) for side in feature.shape[2:]])


def principal_map(feature: Tensor, image: Tensor) -> tuple[Tensor, float]:
    """Return the first principal component of a feature over the positions of one image.

    Its sign is open; chosen is that with which bright positions of the image are bright.

    Args:
        feature: ``(C, H, W)``.
        image: ``(channels, height, width)``.

    Returns:
        The component, ``(H, W)``, and its share of the variance between positions (0 where
        all positions are alike).
    """
    x = feature.detach().flatten(1).T.cpu().double()
    x = x - x.mean(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    component = u[:, 0] * s[0]
    bright = F.adaptive_avg_pool2d(image.cpu().double().mean(0)[None], feature.shape[1:])
    if component @ bright.flatten() < 0:
        component = -component
    share = s[0] ** 2 / s.square().sum().clamp(min=1e-300)
    return component.view(feature.shape[1:]), share.item()


def percent_by_class(hits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the percentage of hits among the images of each class, NaN where it has none.

    Args:
        hits: ``(N,)``, bool.
        labels: Class indices ``(N,)``.
        num_classes: Length of the result.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    return 100 * torch.bincount(labels, hits.double(), minlength=num_classes) / counts


class FeatureReader:
    """Run teacher, assistant and student on images, and read their features.

    The assistant is that of the model's distiller, if it has one; what is read of it is its
    last stage, pooled feature and logits. All run in eval mode.

    Args:
        model: A distillation.
        before: The student as it was without or before the distillation.
    """

    def __init__(self, model: CrossArchDistill, before: BaseModel) -> None:
        self.model = model.eval()
        self.models = {
            'teacher': model.teacher,
            'student before': before.eval(),
            'student after': model.student,
        }
        self.recorders = {name: _recorders_of(own) for name, own in self.models.items()}
        parts = model.distiller.modules()
        self.assistant = next((m for m in parts if isinstance(m, HybridAssistant)), None)
        if self.assistant is not None:
            side, _, source = self.assistant.inputs[0].partition('.')
            first, other = ('teacher', 'student after')[:: 1 if side == 'teacher' else -1]
            self._start = StageOutputsRecorder(source, layout='raw')
            self.recorders[first].recorders['start'] = self._start
            self._last = f'stage{len(view_of(self.models[other]).stages)}'
        for name, own in self.models.items():
            self.recorders[name].initialize(own)

    @torch.no_grad()
    def read(self, inputs: Tensor) -> dict[str, dict[str, Tensor]]:
        """Return the features of each model by their names.

        Args:
            inputs: Preprocessed images, ``(N, C, H, W)``.

        Returns:
            For each model maps ``stage1``.. ``(N, C, H, W)``, ``pooled`` ``(N, D)`` and
            ``logits`` ``(N, C)``; of the assistant only the last of the stages.
        """
        features = {}
        for name, own in self.models.items():
            recorders = self.recorders[name]
            with recorders:
                own(self.model.teacher_inputs(inputs) if name == 'teacher' else inputs)
            features[name] = {
                source: recorder.get_record_data()
                for source, recorder in recorders.recorders.items()
                if source != 'start'
            }
        if self.assistant is not None:
            # by now the recorders rest: the assistant, too, runs through a model's last stages
            made = self.assistant(self._start.get_record_data())
            last = self.assistant.outputs['feature']
            features['assistant'] = {
                self._last: last.to_map(made.feature),
                'pooled': made.pooled,
                'logits': made.logits,
            }
        return features


def _recorders_of(model: BaseModel) -> RecorderManager:
    stages = [f'stage{number}' for number, _ in enumerate(view_of(model).stages, 1)]
    kind = 'mmkd_tas.StageOutputs'
    return RecorderManager(
        {source: dict(type=kind, source=source) for source in [*stages, 'pooled', 'logits']}
    )
