"""Pictures of what was measured."""

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.utils.data import DataLoader

from ..models.losses.functional import class_indices
from ..stages.recorder import labels_of
from .features import FeatureReader, principal_map
from .measured import ORDER, Measured

MOST_BARS = 30


def draw_cka(measured: Measured) -> Figure:
    """Draw how alike teacher and student are before and after, and the assistant and both."""
    others = [name for name in ('teacher', 'assistant') if name in measured.predictions]
    grid = dict(width_ratios=[6, 6, 6, 3], height_ratios=[6, 3]) if len(others) == 2 else {}
    figure, axes = plt.subplots(
        len(others),
        4 if grid else 3,
        figsize=(15, 6.6) if grid else (13, 4.2),
        gridspec_kw=grid,
        layout='constrained',
        squeeze=False,
    )
    for row, other in zip(axes, others, strict=True):
        before, after = (measured.cka_of(other, f'student {time}') for time in ('before', 'after'))
        draw_matrix(row[0], before, 'before', other, 'student before')
        image = draw_matrix(row[1], after, 'after', other, 'student after')
        both = after[0] - before[0], *after[1:]
        change = draw_matrix(row[2], both, 'after minus before', other, 'student', 'RdBu_r')
    if grid:
        assistant = measured.cka_of('teacher', 'assistant')
        draw_matrix(axes[0, 3], assistant, 'after', 'teacher', 'assistant')
        axes[1, 3].axis('off')
    figure.colorbar(change, ax=axes, aspect=40, pad=0.01, extend='both', label='change of CKA')
    figure.colorbar(image, ax=axes, aspect=40, pad=0.01, label='CKA')
    return figure


def draw_matrix(
    ax: Axes,
    cka: tuple[Tensor, list[str], list[str]],
    title: str,
    ylabel: str,
    xlabel: str,
    cmap: str = 'viridis',
) -> AxesImage:
    """Draw a matrix with its values: similarities from 0 to 1, or changes of them."""
    matrix, rows, columns = cka
    low, high = (0, 1) if cmap == 'viridis' else (-0.5, 0.5)
    image = ax.imshow(matrix, cmap=cmap, vmin=low, vmax=high, origin='lower')
    ax.set_xticks(range(len(columns)), columns, rotation=30)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    for (y, x), value in np.ndenumerate(matrix.numpy()):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        text = f'{round(value, 2) + 0.0:.2f}'  # no -0.00
        ax.text(x, y, text, ha='center', va='center', color='w' if dark else 'k', fontsize=9)
    return image


def draw_features(
    reader: FeatureReader, loader: DataLoader, index: int, classes: Sequence[str]
) -> Figure:
    """Draw the stages of all models for one image, beside the image."""
    preprocessor = reader.model.data_preprocessor
    data = preprocessor(loader.collate_fn([loader.dataset[index]]), False)
    label = class_indices(labels_of(data['data_samples'])).item()
    read = reader.read(data['inputs'])
    names = [name for name in ORDER if name in read]
    stages = sorted({source for own in read.values() for source in own if source[:5] == 'stage'})
    image = data['inputs'][0] * getattr(preprocessor, 'std', 1) + getattr(preprocessor, 'mean', 0)
    image = ((image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)).cpu()
    figure, axes = plt.subplots(
        len(names),
        len(stages) + 1,
        figsize=(2.2 * (len(stages) + 1), 2.4 * len(names)),
        layout='constrained',
        squeeze=False,
    )
    figure.suptitle(
        f"Image {index}, class '{classes[label]}': "
        'first principal component of each stage (its share of the variance)'
    )
    for ax in axes.flat:
        ax.axis('off')
    for row, name in zip(axes, names, strict=True):
        share, guess = read[name]['logits'][0].softmax(0).max(0)
        row[0].imshow(image.permute(1, 2, 0) if len(image) == 3 else image.mean(0), cmap='gray')
        row[0].set_title(f"{name}: '{classes[guess]}' ({share:.0%})", fontsize=10)
        for ax, stage in zip(row[1:], stages, strict=True):
            if stage in read[name]:
                component, explained = principal_map(read[name][stage][0], image)
                height, width = component.shape
                ax.imshow(component, cmap='magma')
                ax.set_title(f'{stage}, {height} x {width} ({explained:.0%})', fontsize=10)
    return figure


def draw_agreement(measured: Measured) -> Figure:
    """Draw agreement and accuracies of each class: as bars, or many classes as points."""
    agreement = measured.by_class('student after', 'teacher')
    accuracy = {name: measured.by_class(name) for name in ORDER if name in measured.predictions}
    if len(measured.classes) > MOST_BARS:
        figure, ax = plt.subplots(figsize=(7.5, 6.5), layout='constrained')
        ax.axline((50, 50), slope=1, color='0.8', zorder=0)
        points = ax.scatter(
            accuracy['teacher'], accuracy['student after'], c=agreement, vmin=0, vmax=100
        )
        figure.colorbar(points, ax=ax, label='agreement (%)')
        for i in in_order(agreement)[-8:]:  # those with the least
            place = (accuracy['teacher'][i], accuracy['student after'][i])
            ax.annotate(measured.classes[i], place, (5, -3), textcoords='offset points', fontsize=8)
        ax.set(xlabel="teacher's accuracy (%)", ylabel="student's accuracy (%)")
        ax.set_title('Classes: accuracy of teacher and student after, and their agreement')
        return figure
    order = in_order(agreement)
    figure, ax = plt.subplots(figsize=(max(6, 0.8 * len(order) + 3), 4.5), layout='constrained')
    ax.bar(range(len(order)), agreement[order], color='0.85', label='agreement, student after')
    for i, (name, values) in enumerate(accuracy.items()):
        places = [x + 0.18 * (i - (len(accuracy) - 1) / 2) for x in range(len(order))]
        ax.plot(places, values[order], 'o^vs'[i], label=f'accuracy of {name}')
    ax.set_xticks(range(len(order)), [measured.classes[i] for i in order])
    ax.set(xlabel='class', ylabel='share of its images (%)', ylim=(0, 103))
    ax.set_title('Agreement with the teacher, and accuracy, by class')
    ax.legend(loc='upper left', bbox_to_anchor=(1, 1))
    ax.grid(axis='y', alpha=0.3)
    return figure


def in_order(agreement: Tensor) -> list[int]:
    """Return the classes that have images, from the most agreement to the least."""
    present = [i for i, value in enumerate(agreement.tolist()) if value == value]
    return sorted(present, key=lambda i: -agreement[i])
