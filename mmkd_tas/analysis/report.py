"""The report: one HTML file that holds tables and pictures."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from ..compat import write_whole
from ..errors import NO_GAIN
from .features import FeatureReader
from .measured import Measured
from .pictures import draw_agreement, draw_cka, draw_features, in_order

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
    out: Path,
    measured: Measured,
    reader: FeatureReader,
    loader: DataLoader,
    index: int,
    config: str,
    checkpoint: str,
    before: str | None = None,
) -> str:
    """Draw everything, and write it; return what went wrong, see :func:`verdict`.

    Args:
        out: Folder for the report and its pictures.
        measured: With this reader on the data of this loader.
        reader, loader: Give the features of one image.
        index: Of that image.
        config, checkpoint, before: Names of what was analysed, for the report.
    """
    said = verdict(measured, before)
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
    title = f'Analysis of {Path(config).stem}'
    features = draw_features(reader, loader, index, measured.classes)
    report = REPORT.substitute(
        title=html.escape(title),
        checkpoint=html.escape(checkpoint),
        config=html.escape(config),
        before=html.escape(f'that of {before}' if before else 'one newly initialised'),
        images=len(measured.labels),
        cka_images=measured.cka.images,
        batch_size=loader.batch_size,
        index=index,
        note=ASSISTANT_NOTE if reader.assistant is not None else '',
        summary=table(['', 'top-1, %', 'agreement with the teacher, %'], summary),
        verdict=f'<p><b>{html.escape(said)}</b></p>' if said else '',
        cka=save(draw_cka(measured), out / 'cka.png', 'CKA'),
        features=save(features, out / 'features.png', 'features'),
        agreement=save(draw_agreement(measured), out / 'agreement.png', 'agreement'),
        classes=table(columns, classes),
    )
    write_whole(report.encode(), out / 'report.html')
    return said
