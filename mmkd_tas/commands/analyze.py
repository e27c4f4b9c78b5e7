"""Show why a student got better.

Writes report.html, which holds all of it, and its pictures: how alike the features of
teacher, assistant and student are, before and after the distillation; the features of one
image; and how often student and teacher agree on the images of each class.

Examples:
  mmkd-tas analyze CONFIG CHECKPOINT --out DIR
  mmkd-tas analyze work_dirs/RUN/RUN.py work_dirs/RUN --before work_dirs/ALONE --out DIR
"""

import argparse
import base64
import html
import inspect
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from .. import cli, configs
from ..analysis import FeatureReader, MinibatchCKA, coarse, percent_by_class, principal_map
from ..checkpoint import load_weights
from ..compat import write_whole
from ..errors import NO_GAIN, SetupError
from ..models import CrossArchDistill
from ..models.algorithms.cross_arch_distill import load_student
from ..models.losses.functional import class_indices
from ..stages import describe, view_of
from ..stages.recorder import labels_of

ORDER = ('teacher', 'assistant', 'student before', 'student after')
MOST_BARS = 30
MIN_BATCH = 4  # for unbiased HSIC
ASSISTANT_NOTE = """ The assistant is fused of the first stages of one model and the last of the
other; shown is what comes after its own projector."""
REPORT = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
</style>
</head>
<body>
<h1>$title</h1>
<p>Checkpoint <code>$checkpoint</code> of <code>$config</code>; $images validation images.
<i>Student before</i> is $before; <i>student after</i> is that of the checkpoint.</p>
$summary
$verdict
<h2>Similarity of features</h2>
<p>Linear centred kernel alignment (CKA) between the stages of two models, estimated from
$cka_images of the images in mini-batches of $batch_size, maps averaged to at most 8 x 8 positions:
1 where the features are the same but for rotation and scale, 0 where they have
nothing in common.</p>
$cka
<h2>Features of image $index</h2>
<p>The first principal component of each stage over the positions of the image, and its share of
their variance; its sign is chosen so that bright positions of the image are bright. Beside the
image: what the model predicts, and its probability.$note</p>
$features
<h2>Agreement by class</h2>
<p>Agreement: the share of a class's images for which student and teacher predict the same
class, right or wrong.</p>
$agreement
$classes
</body>
</html>
""")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument('config', help='config of a distillation; the one in its work dir will do')
    parser.add_argument('checkpoint', help='of the run, or its work dir')
    parser.add_argument(
        '--before',
        metavar='CHECKPOINT',
        help='student to compare with: checkpoint or work dir of a run of the student alone; by '
        'default it is newly initialised',
    )
    parser.add_argument('--images', type=int, default=512, help='number of images for CKA')
    parser.add_argument('--image-index', type=int, default=0, help='of the image that is shown')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE'
    )


# --- loading ------------------------------------------------------------------


def load_models(config: Config, args: argparse.Namespace) -> tuple[CrossArchDistill, BaseModel]:
    """Return the distillation of the checkpoint, and the student before."""
    name = config.get('model', {}).get('type')
    kind = MODELS.get(name) if isinstance(name, str) else name
    if not (inspect.isclass(kind) and issubclass(kind, CrossArchDistill)):
        raise SetupError(
            f"config: model.type of '{args.config}' is {name!r}; give the config "
            " of a distillation, 'mmkd_tas.CrossArchDistill'"
        )
    if config.get('data_preprocessor'):
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    student_stages, start = map(config.model.get, ('student_stages', 'student_ckpt'))
    with cli.mistakes_named(config):
        model = MODELS.build(config.model)
        set_random_seed(0)
        before = MODELS.build(cli.student_config(config).model)
    load_weights(model, args.checkpoint, 'checkpoint')
    describe(before, view_of(model.student).input_size, student_stages)
    if args.before:
        load_weights(before, args.before, '--before')
    elif start is not None:
        load_student(before, start)
    else:
        before.init_weights()
    return model.to(get_device()), before.to(get_device())


def load_data(config: Config, args: argparse.Namespace) -> DataLoader:
    """Return the validation data, shuffled: they may be in the order of the classes."""
    if not config.get('val_dataloader'):
        raise SetupError(f"val_dataloader: '{args.config}' has none; add one")
    config.val_dataloader.sampler = dict(type='DefaultSampler', shuffle=True, seed=0)
    with cli.mistakes_named(config):
        loader = Runner.build_dataloader(config.val_dataloader)
    count = len(loader.dataset)
    if args.image_index not in range(count):
        raise SetupError(
            f'--image-index: {args.image_index} is not between 0 and {count - 1}, the last of the '
            'validation images'
        )
    if min(args.images, loader.batch_size, count) < MIN_BATCH:
        raise SetupError(
            f'--images: CKA needs batches of at least 4 images, and there are {args.images} of '
            f'{count} in batches of {loader.batch_size}; raise --images or '
            'val_dataloader.batch_size'
        )
    return loader


# --- measuring ----------------------------------------------------------------


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


# --- drawing ------------------------------------------------------------------


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


# --- reporting ----------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Return an HTML table; numbers are percentages."""
    lines = [''.join(f'<th>{html.escape(name)}</th>' for name in header)]
    for row in rows:
        texts = (cell if isinstance(cell, str) else f'{float(cell):.1f}' for cell in row)
        lines.append(''.join(f'<td>{html.escape(text)}</td>' for text in texts))
    return '<table>\n' + '\n'.join(f'<tr>{line}</tr>' for line in lines) + '\n</table>'


def save(figure: Figure, out: Path, title: str) -> str:
    """Write a picture, and return it as an element of the report."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    plt.close(figure)
    write_whole(buffer.getvalue(), out)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def verdict(measured: Measured, before: str | None) -> str:
    """Return what went wrong, by the accuracies, in a sentence; ``''`` where nothing did."""
    top1 = {name: 100 * measured.hits(name).double().mean().item() for name in measured.predictions}
    after, found = top1['student after'], []
    if before and after <= top1['student before']:
        found.append(f'no better than the student of {before} ({top1["student before"]:.1f} %)')
    if after > top1['teacher']:
        found.append(f'better than its teacher ({top1["teacher"]:.1f} %), which may hold it back')
    if not found:
        return ''
    return f'The student ({after:.1f} %) is {" and ".join(found)}. What to try: {NO_GAIN}'


def write_report(
    args: argparse.Namespace, measured: Measured, reader: FeatureReader, loader: DataLoader
) -> None:
    """Draw everything, and write it."""
    said = verdict(measured, args.before)
    names = list(measured.predictions)
    summary = [
        (name, 100 * measured.hits(name).double().mean(), 100 * same.double().mean())
        for name in names
        for same in [measured.hits(name, 'teacher')]
    ]
    after = measured.by_class('student after', 'teacher')
    counts = measured.labels.bincount(minlength=len(measured.classes))
    accuracy = [measured.by_class(name) for name in names]
    classes = [
        (measured.classes[i], str(counts[i].item()), after[i], *(values[i] for values in accuracy))
        for i in in_order(after)
    ]
    columns = ['class', 'images', 'agreement, student after', *(f'accuracy of {n}' for n in names)]
    title = f'Analysis of {Path(args.config).stem}'
    features = draw_features(reader, loader, args.image_index, measured.classes)
    report = REPORT.substitute(
        title=html.escape(title),
        checkpoint=html.escape(args.checkpoint),
        config=html.escape(args.config),
        before=html.escape(f'that of {args.before}' if args.before else 'one newly initialised'),
        images=len(measured.labels),
        cka_images=measured.cka.images,
        batch_size=loader.batch_size,
        index=args.image_index,
        note=ASSISTANT_NOTE if reader.assistant is not None else '',
        summary=table(['', 'top-1, %', 'agreement with the teacher, %'], summary),
        verdict=f'<p><b>{html.escape(said)}</b></p>' if said else '',
        cka=save(draw_cka(measured), args.out / 'cka.png', 'CKA'),
        features=save(features, args.out / 'features.png', 'features'),
        agreement=save(draw_agreement(measured), args.out / 'agreement.png', 'agreement'),
        classes=table(columns, classes),
    )
    write_whole(report.encode(), args.out / 'report.html')
    if said:
        print(said)


def main(args: argparse.Namespace) -> None:
    """Analyse."""
    plt.switch_backend('agg')
    MMLogger.get_instance('analyze', log_level='WARNING')
    config = configs.load_config(args.config)
    configs.merge_options(config, args.cfg_options)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    loader = load_data(config, args)
    reader = FeatureReader(*load_models(config, args))
    classes, known = (
        loader.dataset.metainfo.get('classes'),
        view_of(reader.model.student).num_classes,
    )
    if classes and len(classes) != known:
        raise SetupError(
            f'val_dataloader: the data set has {len(classes)} classes and the student {known}; '
            'choose other data'
        )
    args.out.mkdir(parents=True, exist_ok=True)
    write_report(args, measure(reader, loader, args.images), reader, loader)
    print(f'{args.out / "report.html"}')
