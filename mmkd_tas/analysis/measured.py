"""What one pass over the validation data tells."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from ..models.losses.functional import class_indices
from ..stages.recorder import labels_of
from .features import FeatureReader, MinibatchCKA, coarse, percent_by_class

ORDER = ('teacher', 'assistant', 'student before', 'student after')
MIN_BATCH = 4  # for unbiased HSIC


@dataclass
class Measured:
    """What one pass over the validation data gives.

    Attributes:
        labels: Class indices ``(N,)``.
        predictions: Of each model, class indices ``(N,)``.
        names: Of the features, ``[('teacher', 'stage1'), ...]``.
        cka: Of each two features.
        classes: Names of the classes.
    """

    labels: Tensor
    predictions: dict[str, Tensor]
    names: list[tuple[str, str]]
    cka: MinibatchCKA
    classes: Sequence[str]

    def cka_of(self, rows: str, columns: str) -> tuple[Tensor, list[str], list[str]]:
        """Return the CKA between the features of two models, and the names of the features."""
        ours, theirs = (
            [i for i, (name, _) in enumerate(self.names) if name == model]
            for model in (rows, columns)
        )
        names = [source for _, source in self.names]
        matrix = self.cka.compute()[ours][:, theirs]
        return matrix, [names[i] for i in ours], [names[i] for i in theirs]

    def hits(self, name: str, other: str | None = None) -> Tensor:
        """Return whether a model predicts the label, or what another model does, ``(N,)``."""
        return self.predictions[name] == (self.predictions[other] if other else self.labels)

    def by_class(self, name: str, other: str | None = None) -> Tensor:
        """Return the percentage of these hits by class; NaN for a class without images."""
        return percent_by_class(self.hits(name, other), self.labels, len(self.classes))


def measure(reader: FeatureReader, loader: DataLoader, images: int) -> Measured:
    """Read all validation data; CKA is computed from the first of them."""
    labels, predictions, cka = [], [], MinibatchCKA()
    for batch in track(loader, 'validation images'):
        data = reader.model.data_preprocessor(batch, False)
        read = reader.read(data['inputs'])
        labels.append(class_indices(labels_of(data['data_samples'])).cpu())
        predictions.append({name: own['logits'].argmax(1).cpu() for name, own in read.items()})
        rest = min(images - cka.images, len(data['inputs']))
        if rest >= MIN_BATCH:
            names = [(name, source) for name, own in read.items() for source in own]
            cka.update([coarse(read[name][source][:rest]) for name, source in names])
    joined = {name: torch.cat([p[name] for p in predictions]) for name in ORDER if name in read}
    count = read['teacher']['logits'].shape[1]
    classes = loader.dataset.metainfo.get('classes') or list(map(str, range(count)))
    return Measured(torch.cat(labels), joined, names, cka, classes)
