"""Compare methods over pairs and seeds: python benchmarks/accuracy.py PROTOCOL

Trains every cell through tools/train.py, each on one thread; cells that are trained
already are kept, and interrupted ones go on. Writes the record of every run, and the table
that is made of them, to --out, logs and checkpoints to --work-dir.
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

    def options(role: str, method: str, chosen: dict) -> list[str]:
        known = protocol[role]
        chosen = {**known.options, **chosen}
        return [
            f'--dataset={known.dataset}',
            f'--method={method}',
            *known.get('flags', []),
            '--cfg-options',
            *(f'{key}={value}' for key, value in chosen.items()),
        ]

    name = Path(protocol.filename).stem
    teachers = Path(protocol.get('teachers', name))
    found = []
    for model, pair in {pair.partition('_')[0]: pair for pair in protocol.pairs.values()}.items():
        chosen = options('teacher', 'teacher', {'randomness.seed': 0})
        found.append(Cell('teacher', None, pair, 0, chosen, teachers / model))
    for seed in args.seeds or range(protocol.seeds):
        for row in args.rows or protocol.rows:
            if row not in protocol.known_rows:
                raise SetupError(f"--rows: there is no '{row}'{suggest(row, protocol.known_rows)}")
            known = protocol.known_rows[row]
            losses = known.get('losses', {}).items()
            chosen = {f'model.distiller.distill_losses.{key}': value for key, value in losses}
            chosen.update({'randomness.seed': seed, 'train_cfg.val_interval': 1000})
            chosen.update({'default_hooks.checkpoint.interval': 1000})
            chosen = options('student', known.method, chosen)
            for direction, pair in protocol.pairs.items():
                folder = Path(name, pair, row, str(seed))
                teacher = teachers / pair.partition('_')[0]
                teacher = None if known.method == 'student' else teacher
                found.append(Cell(row, direction, pair, seed, chosen, folder, teacher))
    for cell in found:
        cell.options = [cell.options[0], f'--pair={cell.pair}', *cell.options[1:]]
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


def table(record: dict) -> str:
    """Return the table of a record, Markdown: mean and deviation over the seeds."""
    students = [cell for cell in record['runs'] if cell['row'] != 'teacher']
    directions = list(dict.fromkeys(cell['direction'] for cell in students))
    lines = [
        f'| top-1, % | {" | ".join(directions)} | mean | gain |',
        '|---' * (len(directions) + 3) + '|',
    ]
    pairs = {cell['direction']: cell['pair'] for cell in students}
    teachers = {
        cell['pair'].partition('_')[0]: cell['top1']
        for cell in record['runs']
        if cell['row'] == 'teacher'
    }
    accuracy = (f'{teachers[pairs[direction].split("_")[0]]:.1f}' for direction in directions)
    lines.append(f'| teacher | {" | ".join(accuracy)} | | |')
    alone = None
    for row in dict.fromkeys(cell['row'] for cell in students):
        by_direction = {
            direction: [
                cell['top1']
                for cell in students
                if (cell['row'], cell['direction']) == (row, direction)
            ]
            for direction in directions
        }
        if not all(by_direction.values()):
            continue
        seeds = min(map(len, by_direction.values()))
        texts, means = [], []
        for values in by_direction.values():
            means.append(statistics.mean(values))
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            texts.append(f'{means[-1]:.1f}{spread}')
        mean = statistics.mean(means)
        alone = mean if row == 'student alone' else alone
        gain = '' if alone is None or row == 'student alone' else f'{mean - alone:+.1f}'
        name = row if seeds == record['seeds'] else f'{row} ({seeds} seeds)'
        lines.append(f'| {name} | {" | ".join(texts)} | {mean:.1f} | {gain} |')
    return '\n'.join(lines) + '\n'


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
    (args.out / f'{name}.md').write_text(table(json.loads((args.out / f'{name}.json').read_text())))
    print((args.out / f'{name}.md').read_text())


if __name__ == '__main__':
    cli.run(main)
