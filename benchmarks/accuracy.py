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
from pathlib import Path

import torch
from mmengine.config import Config
from rich.progress import track

from mmkd_tas import cli
from mmkd_tas.configs import load_config
from mmkd_tas.errors import SetupError, suggest
from mmkd_tas.runs import Run

ROOT = Path(__file__).parents[1]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('protocol', type=Path, help='a file of benchmarks/protocols')
    parser.add_argument('--seeds', type=int, nargs='+', help='by default those of the protocol')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='by default all of the protocol')
    parser.add_argument('--workers', type=int, default=2, help='trainings at a time')
    parser.add_argument('--threads', type=int, default=1, help='threads of each training')
    parser.add_argument('--data-root', help='where the data are, if not where the configs say')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/accuracy'))
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    parser.add_argument(
        '--table', action='store_true', help='train nothing: make the table of the record anew'
    )
    return parser.parse_args()


def arguments(protocol: Config, role: str, pair: str, row: str | None = None) -> list[str]:
    """Return the arguments of tools/train.py for a teacher or a student, up to seed and files."""
    cell = protocol.known_rows[row] if row else dict(method='teacher')
    options = {**protocol[role].options}
    for key, value in cell.get('losses', {}).items():
        options[f'model.distiller.distill_losses.{key}'] = value
    for key, value in cell.get('options', {}).items():
        options[key] = value
    return [
        f'--dataset={protocol[role].dataset}',
        f'--pair={pair}',
        f'--method={cell["method"]}',
        *protocol[role].get('flags', []),
        '--cfg-options',
        *(f'{key}={value}' for key, value in options.items()),
    ]


def train(task: tuple[Path, list[str], int]) -> None:
    """Train one cell in this process."""
    folder, options, threads = task
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    position = options.index('--cfg-options')
    run = ['--work-dir', str(folder), '--resume', 'auto']
    sys.argv = ['train.py', *options[:position], *run, *options[position:]]
    with open(folder / 'console.log', 'a') as log:
        sys.stdout = sys.stderr = log
        try:
            runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
        except SystemExit as end:  # which would leave the pool waiting
            raise RuntimeError(f'{folder}: {end}') from end


def train_all(tasks: dict[Path, list[str]], args: argparse.Namespace, what: str) -> None:
    """Train what is not trained yet, each in a process of its own."""
    todo = [(folder, options, args.threads) for folder, options in tasks.items()]
    with multiprocessing.get_context('fork').Pool(args.workers, maxtasksperchild=1) as pool:
        for _ in track(pool.imap_unordered(train, todo), what, total=len(todo)):
            pass


def record_of(folder: Path, options: list[str], **cell: str | int) -> dict:
    """Return what is kept of a run: its cell, its command, its metrics."""
    run = Run.read(folder)
    return {
        **cell,
        'command': shlex.join(['python', 'tools/train.py', *options]),
        'top1': round(run.top1, 2),
        'seconds': round(run.seconds),
        'val': {epoch: round(m['accuracy/top1'], 2) for epoch, m in run.val.items()},
        'train_loss': {step: round(m['loss'], 4) for step, m in run.train.items()},
    }


def table(record: dict) -> str:
    """Return the table of a record, Markdown: mean and deviation over the seeds."""
    students = [cell for cell in record['runs'] if cell['row'] != 'teacher']
    directions = list(dict.fromkeys(cell['direction'] for cell in students))
    lines = [
        f'| top-1, % | {" | ".join(directions)} | mean | gain |',
        '|---' * (len(directions) + 3) + '|',
    ]
    pairs = {cell['direction']: cell['pair'] for cell in students}
    teachers = {cell['pair']: cell['top1'] for cell in record['runs'] if cell['row'] == 'teacher'}
    accuracy = (f'{teachers[pairs[direction].split("_")[0]]:.1f}' for direction in directions)
    lines.append(f'| teacher | {" | ".join(accuracy)} | | |')
    alone = None
    for row in dict.fromkeys(cell['row'] for cell in students):
        texts, means = [], []
        for direction in directions:
            values = [
                cell['top1']
                for cell in students
                if (cell['row'], cell['direction']) == (row, direction)
            ]
            means.append(statistics.mean(values))
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            texts.append(f'{means[-1]:.1f}{spread}')
            seeds = len(values)
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
    rows = args.rows or protocol.rows
    for row in rows:
        if row not in protocol.known_rows:
            raise SetupError(f"--rows: there is no '{row}'{suggest(row, protocol.known_rows)}")
    seeds = args.seeds or list(range(protocol.seeds))
    data = [
        f'{loader}_dataloader.dataset.data_root={args.data_root}' for loader in ('train', 'val')
    ]
    data = data if args.data_root else []

    folder = args.work_dir / name
    teachers = {pair.split('_')[0]: pair for pair in protocol.pairs.values()}
    plain = {model: arguments(protocol, 'teacher', pair) for model, pair in teachers.items()}
    if not args.table:
        tasks = {folder / model: [*options, *data] for model, options in plain.items()}
        train_all(tasks, args, 'teachers')
    runs = [
        record_of(folder / model, options, row='teacher', pair=model)
        for model, options in plain.items()
    ]
    cells, tasks = {}, {}
    for seed in seeds:
        for row in rows:
            for direction, pair in protocol.pairs.items():
                options = arguments(protocol, 'student', pair, row)
                options += [f'randomness.seed={seed}', 'train_cfg.val_interval=1000']
                options += ['default_hooks.checkpoint.interval=1000']
                if row != 'student alone':
                    options.append(f'model.teacher_ckpt={folder / pair.split("_")[0]}')
                cell = folder / pair / row / str(seed)
                cells[cell] = (options, dict(row=row, direction=direction, pair=pair, seed=seed))
                tasks[cell] = [*options, *data]
    if not args.table:
        train_all(tasks, args, 'students')
    runs += [record_of(cell, options, **keys) for cell, (options, keys) in cells.items()]
    record = dict(
        protocol=name, seeds=len(seeds), torch=torch.__version__, threads=args.threads, runs=runs
    )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f'{name}.json').write_text(json.dumps(record, indent=1) + '\n')
    (args.out / f'{name}.md').write_text(table(record))
    print(table(record))


if __name__ == '__main__':
    cli.run(main)
