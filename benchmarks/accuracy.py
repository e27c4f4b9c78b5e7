"""Compare methods over pairs and seeds: python benchmarks/accuracy.py PROTOCOL

Trains every cell through tools/train.py, each on one thread; cells that are trained
already are kept, and interrupted ones go on. Writes the record of every run, and table
and plot that are made of them, to --out, logs and checkpoints to --work-dir.
"""

import argparse
import json
import multiprocessing
import runpy
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from rich.progress import track

from mmkd_tas import cli
from mmkd_tas.configs import load_config
from mmkd_tas.errors import SetupError, suggest
from mmkd_tas.runs import Run

ROOT = Path(__file__).parents[1]
WORK_DIR = Path('work_dirs/accuracy')


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('protocol', type=Path, help='a file of benchmarks/protocols')
    parser.add_argument('--seeds', type=int, nargs='+', help='by default those of the protocol')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='by default all of the protocol')
    parser.add_argument('--workers', type=int, default=2, help='trainings at a time')
    parser.add_argument('--threads', type=int, default=1, help='threads of each training')
    parser.add_argument('--data-root', help='where the data are, if not where the configs say')
    parser.add_argument('--work-dir', type=Path, default=WORK_DIR)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    parser.add_argument(
        '--table', action='store_true', help='train nothing: make the table of what is trained'
    )
    return parser.parse_args()


@dataclass
class Cell:
    """One training.

    Attributes:
        row: Of the table; ``'teacher'``.
        direction: Column of the table; None for a teacher.
        pair: ``TEACHER_STUDENT``.
        seed: Of the run.
        options: Arguments of tools/train.py, up to files and folders.
        folder: Its work dir.
        teacher: That of the teacher; None if there is none.
    """

    row: str
    direction: str | None
    pair: str
    seed: int
    options: list[str]
    folder: Path
    teacher: Path | None = None

    def arguments(self, root: Path, *more: str) -> list[str]:
        """Return the arguments of tools/train.py, with more of its options."""
        teacher = [f'model.teacher_ckpt={root / self.teacher}'] if self.teacher else []
        return [*self.options, *teacher, *more, f'--work-dir={root / self.folder}']

    def record(self, root: Path) -> dict:
        """Return what is kept of its run: command and metrics."""
        run = Run.read(root / self.folder)
        steps = sorted(run.train)[:: -(-len(run.train) // 20)]
        command = ['python', 'tools/train.py', *self.arguments(WORK_DIR)]
        return dict(
            row=self.row,
            direction=self.direction,
            pair=self.pair,
            seed=self.seed,
            command=shlex.join(command),
            top1=round(run.top1, 2),
            seconds=round(run.seconds),
            val={epoch: round(m['accuracy/top1'], 2) for epoch, m in run.val.items()},
            train_loss={step: round(run.train[step]['loss'], 4) for step in steps},
        )


def cells(protocol: Config, args: argparse.Namespace) -> list[Cell]:
    """Return the trainings of a protocol: its teachers, and then its students by seeds."""

    def options(role: str, pair: str, method: str, chosen: dict) -> list[str]:
        known = protocol[role]
        chosen = {**known.options, **chosen}
        return [
            f'--dataset={known.dataset}',
            f'--pair={pair}',
            f'--method={method}',
            *known.get('flags', []),
            '--cfg-options',
            *(f'{key}={value}' for key, value in chosen.items()),
        ]

    name = Path(protocol.filename).stem
    teachers = Path(protocol.get('teachers', name))
    found = []
    for model, pair in {pair.partition('_')[0]: pair for pair in protocol.pairs.values()}.items():
        chosen = options('teacher', pair, 'teacher', {'randomness.seed': 0})
        found.append(Cell('teacher', None, pair, 0, chosen, teachers / model))
    for seed in args.seeds or range(protocol.seeds):
        for row in args.rows or protocol.rows:
            if row not in protocol.known_rows:
                raise SetupError(f"--rows: there is no '{row}'{suggest(row, protocol.known_rows)}")
            known = protocol.known_rows[row]
            chosen = {
                f'model.distiller.{section}.{key}': value
                for section, part in (('connectors', 'connectors'), ('distill_losses', 'losses'))
                for key, value in known.get(part, {}).items()
            }
            chosen.update({'randomness.seed': seed, 'train_cfg.val_interval': 1000})
            chosen.update({'default_hooks.checkpoint.interval': 1000})
            for direction, pair in protocol.pairs.items():
                arguments = options('student', pair, known.method, chosen)
                folder = Path(name, pair, row, str(seed))
                teacher = teachers / pair.partition('_')[0]
                teacher = None if known.method == 'student' else teacher
                found.append(Cell(row, direction, pair, seed, arguments, folder, teacher))
    return found


def train(task: tuple[Path, list[str], int]) -> None:
    """Train one cell in this process."""
    folder, arguments, threads = task
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    sys.argv = ['train.py', *arguments, '--resume', 'auto']
    with open(folder / 'console.log', 'a') as log:
        sys.stdout = sys.stderr = log
        try:
            runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
        except SystemExit as end:  # which would leave the pool waiting
            raise RuntimeError(f'{folder}: {end}') from end


def train_all(todo: list[Cell], args: argparse.Namespace, what: str) -> None:
    """Train what is not trained yet, each in a process of its own."""
    root = args.work_dir
    data = [
        f'{loader}_dataloader.dataset.data_root={args.data_root}'
        for loader in ('train', 'val')
        if args.data_root
    ]
    tasks = [(root / c.folder, c.arguments(root, *data), args.threads) for c in todo]
    with multiprocessing.get_context('fork').Pool(args.workers, maxtasksperchild=1) as pool:
        for _ in track(pool.imap_unordered(train, tasks), what, total=len(tasks)):
            pass


def results(record: dict) -> tuple[dict[str, float], dict[str, dict[str, list[float]]]]:
    """Return top-1 of the teachers by direction, and of the rows by direction, of every seed.

    Rows that lack a direction are left out.
    """
    students = [run for run in record['runs'] if run['row'] != 'teacher']
    pairs = {run['direction']: run['pair'] for run in students}
    rows = {run['row']: {direction: [] for direction in pairs} for run in students}
    for run in students:
        rows[run['row']][run['direction']].append(run['top1'])
    found = {
        run['pair'].partition('_')[0]: run['top1']
        for run in record['runs']
        if run['row'] == 'teacher'
    }
    teachers = {direction: found[pair.partition('_')[0]] for direction, pair in pairs.items()}
    return teachers, {row: values for row, values in rows.items() if all(values.values())}


def deviation(values: list[float]) -> float | None:
    """Return the standard deviation, None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


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
        alone = mean if row == 'student alone' else alone
        gain = '' if alone is None or row == 'student alone' else f'{mean - alone:+.1f}'
        name = row if seeds == record['seeds'] else f'{row} ({seeds} seeds)'
        lines.append(f'| {name} | {" | ".join(texts)} | {mean:.1f} | {gain} |')
    return '\n'.join(lines) + '\n'


def plot(record: dict, file: Path) -> None:
    """Draw the table of a record: a panel per pair, a point per row."""
    teachers, rows = results(record)
    figure, axes = plt.subplots(
        1,
        len(teachers),
        figsize=(3 * len(teachers), 0.28 * len(rows) + 1.2),
        sharex=True,
        sharey=True,
        layout='constrained',
    )
    for ax, (direction, teacher) in zip(axes, teachers.items(), strict=True):
        means = {row: statistics.mean(values[direction]) for row, values in rows.items()}
        spreads = [deviation(values[direction]) or 0 for values in rows.values()]
        ax.axvline(teacher, color='C1', linestyle='--', label='teacher')
        if alone := means.get('student alone'):
            ax.axvline(alone, color='0.6', linestyle=':', label='student alone')
        ax.errorbar(list(means.values()), list(means), xerr=spreads, fmt='o')
        ax.set(title=direction, xlabel='top-1 (%)')
        ax.grid(alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower right', ncols=2)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Train all cells, and write record and table."""
    args = parse_args()
    protocol = load_config(args.protocol)
    name = args.protocol.stem
    known = cells(protocol, args)
    if not args.table:
        train_all([c for c in known if c.row == 'teacher'], args, 'teachers')
        train_all([c for c in known if c.row != 'teacher'], args, 'students')
    about = dict(
        protocol=name,
        seeds=len(args.seeds or range(protocol.seeds)),
        torch=torch.__version__,
        threads=args.threads,
    )
    runs = [
        cell.record(args.work_dir)
        for cell in known
        if (args.work_dir / cell.folder / 'last_checkpoint').is_file()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    text = ',\n'.join(json.dumps(run) for run in runs)  # one run per line
    about = json.dumps(about)[:-1]
    (args.out / f'{name}.json').write_text(f'{about}, "runs": [\n{text}\n]}}\n')
    record = json.loads((args.out / f'{name}.json').read_text())
    text = table(record)
    (args.out / f'{name}.md').write_text(text)
    plot(record, args.out / f'{name}.png')
    print(text)


if __name__ == '__main__':
    cli.run(main)
