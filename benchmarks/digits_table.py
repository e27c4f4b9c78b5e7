"""Compare methods over directions and seeds on the digits: python benchmarks/digits_table.py

Trains every cell through tools/train.py, two at a time, each on one thread; cells that
are trained already are kept. Writes the accuracies to digits.csv and the table to digits.md
(in --out), logs and checkpoints to --work-dir. 260 trainings of half a minute take 2 hours.
"""

import argparse
import csv
import itertools
import multiprocessing
import runpy
import statistics
import sys
from pathlib import Path

import torch
from rich.progress import track

from mmkd_tas.runs import Run

ROOT = Path(__file__).parents[1]
PAIRS = {
    'CNN -> ViT': 'resnet18-w16_vit-w64',
    'CNN -> MLP': 'resnet18-w16_mixer-w64',
    'ViT -> CNN': 'vit-w64_resnet18-w4',
    'MLP -> CNN': 'mixer-w64_resnet18-w4',
}
LOSSES = 'model.distiller.distill_losses'


def without(*terms: str) -> list[str]:
    """Return the options that switch terms of the loss off."""
    return [f'{LOSSES}.loss_{term}.loss_weight=0' for term in terms]


# name of the row: method and options
VARIANTS = {
    'student alone': ('student', []),
    'KD': ('kd', []),
    'OFA': ('ofa', []),
    'TAS': ('tas', []),
    'TAS, without InfoNCE': ('tas', without('ts_features', 'ta_features', 'as_features')),
    'TAS, without OFA': ('tas', without('ts_logits', 'ta_logits', 'as_logits')),
    'TAS, without L(t -> a)': ('tas', without('ta_features', 'ta_logits')),
    'TAS, assistant not detached': (
        'tas',
        [f'{LOSSES}.loss_as_{kind}.detach_target=False' for kind in ('features', 'logits')],
    ),
    'HCD': ('hcd', []),
    'RSD': ('rsd', []),
    'TAS, RSD for InfoNCE': ('tas-rsd', []),
    'TAS + HCD': ('tas-hcd', []),
    'OFA + RSD': ('ofa-rsd', []),
}


def train(task: tuple[Path, list[str]]) -> None:
    """Train one cell in this process."""
    folder, arguments = task
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    sys.argv = ['train.py', *arguments, '--work-dir', str(folder), '--resume', 'auto']
    with open(folder / 'console.log', 'a') as log:
        sys.stdout = sys.stderr = log
        try:
            runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
        except SystemExit as end:  # which would leave the pool waiting
            raise RuntimeError(f'{folder}: {end}') from end


def run(tasks: list[tuple[Path, list[str]]], workers: int, what: str) -> None:
    """Train what is not trained yet, each in a process of its own."""
    tasks = [task for task in tasks if not (task[0] / 'last_checkpoint').is_file()]
    with multiprocessing.get_context('fork').Pool(workers, maxtasksperchild=1) as pool:
        for _ in track(pool.imap_unordered(train, tasks), what, total=len(tasks)):
            pass


def main() -> None:
    """Train all cells, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--only', nargs='+', metavar='ROW', default=list(VARIANTS))
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/digits_table'))
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks/results')
    args = parser.parse_args()

    teachers = {pair.split('_')[0]: pair for pair in PAIRS.values()}
    run(
        [
            (args.work_dir / name, ['--dataset=digits', f'--pair={pair}', '--method=teacher'])
            for name, pair in teachers.items()
        ],
        args.workers,
        'teachers',
    )
    cells = {
        (row, direction, seed): args.work_dir / f'{PAIRS[direction]}/{row}/{seed}'
        for seed, row, direction in itertools.product(range(args.seeds), args.only, PAIRS)
    }
    tasks = []
    for (row, direction, seed), folder in cells.items():
        method, options = VARIANTS[row]
        pair = PAIRS[direction]
        options = [f'randomness.seed={seed}', 'train_cfg.val_interval=100', *options]
        options += ['default_hooks.checkpoint.interval=100']
        if method != 'student':
            options.append(f'model.teacher_ckpt={args.work_dir / pair.split("_")[0]}')
        composed = ['--dataset=digits200', f'--pair={pair}', f'--method={method}']
        tasks.append((folder, [*composed, '--cfg-options', *options]))
    run(tasks, args.workers, 'students')

    top1 = {cell: Run.read(folder).top1 for cell, folder in cells.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / 'digits.csv', 'w', newline='') as file:
        rows = [(*cell, f'{value:.2f}') for cell, value in top1.items()]
        csv.writer(file).writerows([('method', 'direction', 'seed', 'top1'), *sorted(rows)])
    lines = [f'| top-1, % | {" | ".join(PAIRS)} | mean |', '|---' * (len(PAIRS) + 2) + '|']
    accuracy = [
        f'{Run.read(args.work_dir / pair.split("_")[0]).top1:.1f}' for pair in PAIRS.values()
    ]
    lines.append(f'| teacher | {" | ".join(accuracy)} | |')
    for row in args.only:
        line, means = [], []
        for direction in PAIRS:
            values = [top1[row, direction, seed] for seed in range(args.seeds)]
            means.append(statistics.mean(values))
            line.append(f'{means[-1]:.1f} ± {statistics.stdev(values):.1f}')
        lines.append(f'| {row} | {" | ".join(line)} | {statistics.mean(means):.1f} |')
    (args.out / 'digits.md').write_text('\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
