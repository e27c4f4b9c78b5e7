"""Compare trainings: python tools/compare_runs.py [NAME=]WORK_DIR ... --out curves.png"""

import argparse
import io

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from mmkd_tas import cli
from mmkd_tas.compat import write_whole
from mmkd_tas.runs import Run


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Print a table of trainings, and plot their accuracy on the validation '
        'data and their training loss.'
    )
    parser.add_argument('runs', nargs='+', metavar='[NAME=]WORK_DIR')
    parser.add_argument('--out', help='write the plot to this .png, .svg or .pdf file')
    return parser.parse_args()


def print_table(runs: list[Run]) -> None:
    """Print a row per run."""
    table = Table('run', 'top-1 %', 'seconds', 'parameters')
    for column in table.columns[1:]:
        column.justify = 'right'
    for run in runs:
        top1 = '-' if run.top1 is None else f'{run.top1:.2f}'
        table.add_row(run.label, top1, f'{run.seconds:.0f}', f'{run.parameters:,}')
    Console().print(table)


def plot(runs: list[Run], out: str) -> None:
    """Plot top-1 accuracy and training loss over the share of the training that is done."""
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout='constrained')
    for run in runs:
        top1 = {e: m['accuracy/top1'] for e, m in sorted(run.val.items()) if 'accuracy/top1' in m}
        label = f'{run.label} ({run.top1:.1f})' if top1 else run.label
        for axes, values in ((left, top1), (right, run.losses)):
            done = [100 * step / max(values) for step in values]
            axes.plot(done, list(values.values()), marker='.', label=label)
    left.set(ylabel='top-1 accuracy, validation (%)')
    right.set(ylabel='training loss, without the terms of distillation', yscale='log')
    for axes in (left, right):
        axes.set(xlabel='training done (%)')
        axes.grid(alpha=0.3)
    left.legend(loc='lower right')
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.rpartition('.')[2], dpi=150)
    write_whole(buffer.getvalue(), out)


def main() -> None:
    """Compare."""
    args = parse_args()
    runs = []
    for argument in args.runs:
        name, _, folder = argument.rpartition('=')
        runs.append(Run.read(folder, name or None))
    print_table(runs)
    if args.out:
        plot(runs, args.out)
        print(f'curves: {args.out}')


if __name__ == '__main__':
    cli.run(main)
