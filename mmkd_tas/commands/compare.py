"""Print a table of trainings, and plot their validation accuracy and their training loss.

Runs that differ only in their seed make one row: mean and standard deviation. Gain is the
difference from the student alone, if that is among them.

Examples:
  mmkd-tas compare work_dirs/*
  mmkd-tas compare KD=work_dirs/kd TAS=work_dirs/tas --out curves.png
"""

import argparse
import io

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from ..compat import write_whole
from ..errors import NO_GAIN
from ..runs import Group, Run, compared, grouped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument('runs', nargs='+', metavar='[NAME=]WORK_DIR')
    parser.add_argument('--out', help='write the plot to this .png, .svg or .pdf file')


def print_table(groups: list[Group], gains: list[float | None]) -> None:
    """Print a row per group."""
    table = Table('run', 'seeds', 'top-1 %', 'gain', 'teacher %', 'seconds', 'parameters')
    for column in table.columns[1:]:
        column.justify, column.no_wrap = 'right', True
    for group, gain in zip(groups, gains, strict=True):
        seconds = sum(run.seconds for run in group.runs) / len(group.runs)
        table.add_row(
            group.label,
            str(len(group.runs)),
            shown(group),
            '-' if gain is None else f'{gain:+.2f}',
            '-' if group.teacher is None else f'{group.teacher:.2f}',
            f'{seconds:.0f}',
            f'{group.runs[0].parameters:,}',
        )
    Console().print(table)


def shown(group: Group, digits: int = 2) -> str:
    """Return mean and deviation of the top-1 as text."""
    if group.mean is None:
        return '-'
    spread = '' if group.deviation is None else f' ± {group.deviation:.{digits}f}'
    return f'{group.mean:.{digits}f}{spread}'


def plot(groups: list[Group], out: str) -> None:
    """Plot top-1 accuracy and training loss over the share of the training that is done."""
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout='constrained')
    for number, group in enumerate(groups):
        label = f'{group.label} ({shown(group, 1)})' if group.top1 else group.label
        for run in group.runs:  # in one colour, and once in the legend
            top1 = {
                e: m['accuracy/top1'] for e, m in sorted(run.val.items()) if 'accuracy/top1' in m
            }
            for axes, values in ((left, top1), (right, run.losses)):
                done = [100 * step / max(values) for step in values]
                axes.plot(done, list(values.values()), f'C{number % 10}', marker='.', label=label)
            label = None
    left.set(ylabel='top-1 accuracy, validation (%)')
    right.set(ylabel='training loss, without the terms of distillation', yscale='log')
    for axes in (left, right):
        axes.set(xlabel='training done (%)')
        axes.grid(alpha=0.3)
    left.legend(loc='lower right')
    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.rpartition('.')[2], dpi=150)
    write_whole(buffer.getvalue(), out)


def main(args: argparse.Namespace) -> None:
    """Compare."""
    runs = []
    for argument in args.runs:
        name, _, folder = argument.rpartition('=')
        runs.append(Run.read(folder, name or None))
    groups = grouped(runs)
    gains, notes, wrong = compared(groups)
    print_table(groups, gains)
    for note in notes + wrong:
        print(f'- {note}')
    if wrong:
        print(f'What to try: {NO_GAIN}')
    if args.out:
        plot(groups, args.out)
        print(f'curves: {args.out}')
