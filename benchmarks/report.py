"""Tables, plots and documents from the records alone: python benchmarks/report.py

Checks the rules of a protocol, and shows only the directions that keep them. In README.md
and docs/ it replaces what stands between `<!-- NAME.md -->` and `<!-- end -->` by that file
of benchmarks/results.
"""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator, ScalarFormatter

from mmkd_tas import cli

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks/results'
PAGES = (ROOT / 'README.md', ROOT / 'docs/results.md')
ALONE = 'student alone'
# Points of accuracy on the validation images
LEAD = 5.0
GROWTH = 1.0


@dataclass
class Rules:
    """What a direction must keep to be shown, measured on the validation images.

    Attributes:
        epochs: The full length.
        teacher: Top-1 of the teacher, percent.
        alone: Top-1 of the student alone at full length; None where it was not run.
        longer: The same with twice the epochs.
        one_recipe: Whether all rows of a seed and length had the same data, augmentation,
            optimizer, schedule, epochs and seed of the first weights.
        held_out: Whether no image of the validation was trained or tested on.
    """

    epochs: int
    teacher: float
    alone: float | None
    longer: float | None
    one_recipe: bool
    held_out: bool

    @property
    def lead(self) -> float | None:
        """By how much the teacher is better than the student alone."""
        return None if self.alone is None else self.teacher - self.alone

    @property
    def growth(self) -> float | None:
        """What twice the epochs bring the student alone."""
        return None if None in (self.alone, self.longer) else self.longer - self.alone

    @property
    def led(self) -> bool:
        """Whether the teacher has something to teach."""
        return self.lead is not None and self.lead >= LEAD

    @property
    def steady(self) -> bool:
        """Whether the student alone is fully trained."""
        return self.growth is not None and self.growth < GROWTH

    @property
    def kept(self) -> bool:
        """Whether the direction may be shown."""
        return self.led and self.steady and self.one_recipe and self.held_out


def mean_of(values: list[float]) -> float | None:
    """Return the mean, None of nothing."""
    return statistics.mean(values) if values else None


def deviation(values: list[float]) -> float | None:
    """Return the standard deviation, None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def students(record: dict) -> list[dict]:
    """Return the runs of a record that are none of a teacher."""
    return [run for run in record['runs'] if run['row'] != 'teacher']


def teacher_of(record: dict, direction: str) -> dict:
    """Return the run of the teacher of a direction."""
    pair = next(run['pair'] for run in students(record) if run['direction'] == direction)
    model = pair.partition('_')[0]
    return next(r for r in record['runs'] if r['row'] == 'teacher' and r['model'] == model)


def directions(record: dict) -> list[str]:
    """Return all directions of a record, also those that keep no rule."""
    return list(dict.fromkeys(run['direction'] for run in students(record)))


def rules(record: dict) -> dict[str, Rules]:
    """Return how the directions of a record stand to the rules; none of it without rules."""
    found = {}
    for direction in directions(record) if record.get('rules') else ():
        runs = [run for run in students(record) if run['direction'] == direction]
        full = max((run['epochs'] for run in runs if run['full']), default=0)
        alone = [run for run in runs if run['row'] == ALONE]
        at = {n: mean_of([r['val_top1'] for r in alone if r['epochs'] == n * full]) for n in (1, 2)}
        recipes = {(run['seed'], run['epochs'], run['recipe']) for run in runs}
        settings = {(seed, epochs) for seed, epochs, _ in recipes}
        found[direction] = Rules(
            epochs=full,
            teacher=teacher_of(record, direction)['val_top1'],
            alone=at[1],
            longer=at[2],
            one_recipe=len(recipes) == len(settings),
            held_out=all(run['held_out'] for run in [*runs, teacher_of(record, direction)]),
        )
    return found


def shown(record: dict) -> list[str]:
    """Return the directions that keep the rules, all of them where there are none."""
    known = rules(record)
    return [d for d in directions(record) if d not in known or known[d].kept]


def results(record: dict) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
    """Return top-1 of the teachers by direction, and of the rows by direction, of every seed.

    Runs at full length, in the directions that are shown; rows that lack one of these
    directions are left out.
    """
    columns = shown(record)
    runs = [run for run in students(record) if run['full'] and run['direction'] in columns]
    rows = {run['row']: {direction: [] for direction in columns} for run in runs}
    for run in runs:
        rows[run['row']][run['direction']].append(run['top1'])
    teachers = {direction: teacher_of(record, direction)['top1'] for direction in columns}
    return teachers, {row: values for row, values in rows.items() if all(values.values())}


def table(record: dict) -> str:
    """Return the table of a record, Markdown: mean and deviation over the seeds."""
    teachers, rows = results(record)
    lines = [
        f'| top-1, % | {" | ".join(teachers)} | mean | gain |',
        '|---' * (len(teachers) + 3) + '|',
        f'| teacher | {" | ".join(f"{top1:.1f}" for top1 in teachers.values())} | | |',
    ]
    alone = None
    for row, by_direction in rows.items():
        seeds = min(map(len, by_direction.values()))
        texts = []
        for values in by_direction.values():
            spread = deviation(values)
            spread = '' if spread is None else f' ± {spread:.1f}'
            texts.append(f'{statistics.mean(values):.1f}{spread}')
        mean = statistics.mean(map(statistics.mean, by_direction.values()))
        alone = mean if row == ALONE else alone
        gain = '' if alone is None or row == ALONE else f'{mean - alone:+.1f}'
        name = row if seeds == record['seeds'] else f'{row} ({seeds} seeds)'
        lines.append(f'| {name} | {" | ".join(texts)} | {mean:.1f} | {gain} |')
    return '\n'.join(lines) + '\n' if rows else ''


def rule_table(record: dict) -> str:
    """Return how every direction stands to the rules, Markdown; empty if there are none."""
    known = rules(record)
    if not known:
        return ''

    def line(name: str, cells: list[str]) -> str:
        return f'| {name} | {" | ".join(cells)} |'

    def points(value: float | None, kept: bool) -> str:
        if value is None:
            return 'not run'
        return f'{value:+.1f}' + ('' if kept else ' (broken)')

    def said(kept: bool) -> str:
        return 'yes' if kept else 'no (broken)'

    found = known.values()
    return '\n'.join(
        [
            line('rule, on the validation images', list(known)),
            '|---' * (len(known) + 1) + '|',
            line('full length, epochs', [str(r.epochs) for r in found]),
            line(
                f'teacher over the student alone: at least {LEAD:g} points',
                [points(r.lead, r.led) for r in found],
            ),
            line(
                f'student alone with twice the epochs: less than {GROWTH:g} point',
                [points(r.growth, r.steady) for r in found],
            ),
            line('one recipe in all rows', [said(r.one_recipe) for r in found]),
            line('validated on images of their own', [said(r.held_out) for r in found]),
            line('shown', ['yes' if r.kept else 'no' for r in found]),
            '',
        ]
    )


def curves(record: dict) -> dict[str, dict[str, dict[int, float]]]:
    """Return top-1 by direction, row and epochs, mean over seeds, where lengths were compared.

    All directions of a record with rules, whether they keep them or not, in which a distilled
    student was trained for several lengths.
    """
    found = {direction: {} for direction in directions(record)}
    for run in students(record) if record.get('rules') else ():
        by_row = found[run['direction']].setdefault(run['row'], {})
        by_row.setdefault(run['epochs'], []).append(run['top1'])
    return {
        direction: {
            row: {epochs: statistics.mean(values) for epochs, values in sorted(lengths.items())}
            for row, lengths in rows.items()
        }
        for direction, rows in found.items()
        if any(len(lengths) > 1 for row, lengths in rows.items() if row != ALONE)
    }


def curve_table(record: dict) -> str:
    """Return top-1 against the length of the training, Markdown, a part for each direction.

    In brackets the gain over the student alone of the same length.
    """
    parts = []
    for direction, rows in curves(record).items():
        lengths = sorted({epochs for values in rows.values() for epochs in values})
        teacher = teacher_of(record, direction)['top1']
        heads = [f'{epochs} epochs' for epochs in lengths]
        lines = [
            f'| {direction} (teacher {teacher:.1f}) | {" | ".join(heads)} |',
            '|---' * (len(lengths) + 1) + '|',
        ]
        alone = rows.get(ALONE, {})
        for row, values in rows.items():
            cells = {epochs: f'{top1:.1f}' for epochs, top1 in values.items()}
            for epochs in cells.keys() & alone.keys() if row != ALONE else ():
                cells[epochs] += f' ({values[epochs] - alone[epochs]:+.1f})'
            lines.append(f'| {row} | {" | ".join(cells.get(e, "") for e in lengths)} |')
        parts.append('\n'.join(lines) + '\n')
    return '\n'.join(parts)


def plot(record: dict, file: Path) -> None:
    """Draw the table of a record: a panel per pair, a point per row."""
    teachers, rows = results(record)
    figure, axes = plt.subplots(
        1,
        len(teachers),
        figsize=(3 * len(teachers), 0.28 * len(rows) + 1.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout='constrained',
    )
    for ax, (direction, teacher) in zip(axes[0], teachers.items(), strict=True):
        means = {row: statistics.mean(values[direction]) for row, values in rows.items()}
        spreads = [deviation(values[direction]) or 0 for values in rows.values()]
        ax.axvline(teacher, color='C1', linestyle='--', label='teacher')
        if alone := means.get(ALONE):
            ax.axvline(alone, color='0.6', linestyle=':', label=ALONE)
        ax.errorbar(list(means.values()), list(means), xerr=spreads, fmt='o')
        ax.set(title=direction, xlabel='top-1 (%)')
        ax.grid(alpha=0.3)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower right', ncols=2)
    figure.savefig(file, dpi=110)


def plot_curves(record: dict, file: Path) -> None:
    """Draw top-1 against the length of the training: a panel per direction, a line per row.

    The rows of the table; all of them where it has none.
    """
    main = results(record)[1]
    found = {
        direction: {row: values for row, values in rows.items() if row in main or not main}
        for direction, rows in curves(record).items()
    }
    figure, axes = plt.subplots(
        1, len(found), figsize=(5 * len(found), 3.8), squeeze=False, layout='constrained'
    )
    names = dict.fromkeys(row for rows in found.values() for row in rows if row != ALONE)
    colours = {row: f'C{number}' for number, row in enumerate(names)}
    for ax, (direction, rows) in zip(axes[0], found.items(), strict=True):
        ax.axhline(
            teacher_of(record, direction)['top1'], color='0.3', linestyle='--', label='teacher'
        )
        for row, values in rows.items():
            style = dict(color=colours[row]) if row != ALONE else dict(color='0.5', linestyle=':')
            ax.plot(list(values), list(values.values()), marker='o', label=row, **style)
        ax.set(title=direction, xlabel='epochs of the training', ylabel='top-1 (%)', xscale='log')
        ax.set_xticks(sorted({epochs for values in rows.values() for epochs in values}))
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3)
    handles = {
        label: handle
        for ax in axes[0]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc='outside right center')
    figure.savefig(file, dpi=110)


def write(record: dict, folder: Path) -> None:
    """Write the tables and plots of a record into a folder."""
    name = record['protocol']
    (folder / f'{name}.md').write_text(table(record))
    if text := rule_table(record):
        (folder / f'{name}_rules.md').write_text(text)
    if results(record)[1]:
        plot(record, folder / f'{name}.png')
    if curves(record):
        (folder / f'{name}_curves.md').write_text(curve_table(record))
        plot_curves(record, folder / f'{name}_curves.png')
    plt.close('all')


def filled(text: str, folder: Path = RESULTS) -> str:
    """Return a page with the tables of a folder in their places."""

    def block(match: re.Match) -> str:
        return f'{match[1]}\n{(folder / match[2]).read_text()}{match[3]}'

    pattern = r'(<!-- ([\w-]+\.md) -->)\n.*?(<!-- end -->)'
    return re.sub(pattern, block, text, flags=re.DOTALL)


def main() -> None:
    """Write the tables and plots of all records, and bring them into the pages."""
    for file in sorted(RESULTS.glob('*.json')):
        write(json.loads(file.read_text()), RESULTS)
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == '__main__':
    cli.run(main)
