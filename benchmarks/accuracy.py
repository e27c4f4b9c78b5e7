"""Compare methods over pairs, seeds and lengths: python benchmarks/accuracy.py PROTOCOL

Trains every cell through tools/train.py, each on one thread; cells that are trained
already are kept, and interrupted ones go on. Writes the record of every run, and tables
and plots that are made of them, to --out, logs and checkpoints to --work-dir.
"""

import argparse
import json
import multiprocessing
import runpy
import shlex
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import mmengine
import report
import torch
from mmengine.config import Config
from rich.progress import track

from mmkd_tas import cli
from mmkd_tas.configs import load_config
from mmkd_tas.errors import SetupError, suggest
from mmkd_tas.runs import Run

ROOT = Path(__file__).parents[1]
WORK_DIR = Path('work_dirs/accuracy')
# What all rows of a direction must have in common, beside the student and the seed, of which its
# first weights follow.
RECIPE = ('data_preprocessor', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg')
# Of the students, where a protocol says nothing else.
STUDENTS = {'train_cfg.val_interval': 1000, 'default_hooks.checkpoint.interval': 1000}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('protocol', type=Path, help='a file of benchmarks/protocols')
    parser.add_argument(
        '--quick', action='store_true', help='the small variant that the protocol has'
    )
    parser.add_argument('--seeds', type=int, nargs='+', help='by default those of the protocol')
    parser.add_argument('--rows', nargs='+', metavar='ROW', help='by default all of the protocol')
    parser.add_argument(
        '--directions', nargs='+', metavar='DIRECTION', help='by default all of the protocol'
    )
    parser.add_argument('--workers', type=int, default=2, help='trainings at a time')
    parser.add_argument('--threads', type=int, default=1, help='threads of each training')
    parser.add_argument('--data-root', help='where the data are, if not where the configs say')
    parser.add_argument('--work-dir', type=Path, default=WORK_DIR)
    parser.add_argument('--out', type=Path, default=report.RESULTS)
    parser.add_argument(
        '--table', action='store_true', help='train nothing: make the tables of what is trained'
    )
    return parser.parse_args()


@dataclass
class Cell:
    """One training.

    Attributes:
        row: Of the table; ``'teacher'``.
        direction: Column of the table; None for a teacher.
        pair: ``TEACHER_STUDENT``.
        model: The model that is trained.
        seed: Of the run.
        options: Arguments of tools/train.py, up to files and folders.
        folder: Its work dir.
        epochs: Length of the training; None: that of the recipe.
        full: Whether that is the full length of the protocol.
        teacher: Work dir of the teacher; None if there is none.
        cache: File of the teacher's cache; None if there is none.
    """

    row: str
    direction: str | None
    pair: str
    model: str
    seed: int
    options: list[str]
    folder: Path
    epochs: int | None = None
    full: bool = True
    teacher: Path | None = None
    cache: Path | None = None

    def arguments(self, root: Path, *more: str) -> list[str]:
        """Return the arguments of tools/train.py, with more of its options."""
        teacher = [f'model.teacher_ckpt={root / self.teacher}'] if self.teacher else []
        cache = [f'model.teacher_cache.path={root / self.cache}'] if self.cache else []
        return [*self.options, *teacher, *cache, *more, f'--work-dir={root / self.folder}']

    def finished(self, root: Path) -> bool:
        """Whether it is trained to the end."""
        folder = root / self.folder
        return (folder / 'last_checkpoint').is_file() and Run.read(folder).finished

    def record(self, root: Path, test: bool) -> dict:
        """Return what is kept of its run: command and metrics, on the test images if asked."""
        run = Run.read(root / self.folder)
        steps = sorted(run.train)[:: -(-len(run.train) // 20)]
        command = ['python', 'tools/train.py', *self.arguments(WORK_DIR)]
        tested = root / self.folder / 'test.json'
        top1 = mmengine.load(tested)['accuracy/top1'] if test else run.top1
        return dict(
            row=self.row,
            direction=self.direction,
            pair=self.pair,
            model=self.model,
            seed=self.seed,
            epochs=run.epochs[1],
            full=self.full,
            recipe=recipe(run),
            held_out=held_out(run),
            command=shlex.join(command),
            top1=round(top1, 2),
            val_top1=round(run.top1, 2),
            seconds=round(run.seconds),
            val={epoch: round(m['accuracy/top1'], 2) for epoch, m in run.val.items()},
            train_loss={step: round(run.train[step]['loss'], 4) for step in steps},
        )


def recipe(run: Run) -> str:
    """Return a checksum of what all rows of a direction must have in common."""
    config = run.config.to_dict()
    config['train_dataloader']['dataset'].pop('data_root', None)
    parts = [run.student, run.seed, *(config.get(key) for key in RECIPE)]
    return f'{zlib.crc32(json.dumps(parts, sort_keys=True, default=str).encode()):08x}'


def held_out(run: Run) -> bool:
    """Return whether a run was validated on images that neither training nor test has."""
    config = run.config
    train, val = (config[f'{name}_dataloader'].dataset for name in ('train', 'val'))
    return val.get('split') == 'val' and (train.get('num_train') or 50000) <= 45000


def read_protocol(path: Path, quick: bool) -> Config:
    """Read a protocol, or its small variant."""
    protocol = load_config(path)
    if quick:
        if 'quick' not in protocol:
            raise SetupError(f"--quick: '{path}' has no small variant; leave --quick out")
        protocol.merge_from_dict(protocol.pop('quick'))
    protocol.name = f'{path.stem}_quick' if quick else path.stem
    return protocol


def lengths(protocol: Config, direction: str, row: str, seed: int) -> list[int | None]:
    """Return for how many epochs a row is trained, the full length first; None: the recipe's.

    The full length is the protocol's, or the direction's own. The student alone is also
    trained for twice of it. Shorter lengths, for the curves, are those of the first seed.
    """
    if 'epochs' not in protocol:
        return [None]
    about = protocol.get('directions', {}).get(direction, {})
    found = [about.get('epochs', protocol.epochs)]
    if protocol.known_rows[row].method == 'student':
        found.append(2 * found[0])
    curves = protocol.curves
    if row in curves.rows and direction in curves.directions and seed == 0:
        found += [epochs for epochs in curves.epochs if epochs < found[0]]
    return list(dict.fromkeys(found))


def cells(protocol: Config, args: argparse.Namespace) -> list[Cell]:
    """Return the trainings of a protocol: its teachers, and then its students by seeds."""

    def options(role: str, pair: str, method: str, chosen: dict, flags: list[str]) -> list[str]:
        known = protocol[role]
        defaults = STUDENTS if role == 'student' else {}
        chosen = {**defaults, **known.options, **chosen}
        return [
            f'--dataset={known.dataset}',
            f'--pair={pair}',
            f'--method={method}',
            *flags,
            '--cfg-options',
            *(f'{key}={value}' for key, value in chosen.items()),
        ]

    for option, asked, known in (
        ('--rows', args.rows, protocol.known_rows),
        ('--directions', args.directions, protocol.pairs),
    ):
        for name in asked or ():
            if name not in known:
                raise SetupError(f"{option}: there is no '{name}'{suggest(name, known)}")
    name = protocol.name
    teachers, work = (Path(protocol.get(key, name)) for key in ('teachers', 'students'))
    found = []

    def add_teacher(model: str, pair: str) -> None:
        """Add a teacher, after the one that it is distilled from."""
        if any(cell.model == model for cell in found):
            return
        known = protocol.get('distilled_teachers', {}).get(model, {})
        method = known.get('method', 'teacher')
        pair = known.get('pair', pair)
        source = None
        if known:
            source = pair.partition('_')[0]
            add_teacher(source, pair)
        chosen = {'randomness.seed': 0, **known.get('options', {})}
        flags = known.get('flags', protocol.teacher.get('flags', []))
        arguments = options('teacher', pair, method, chosen, flags)
        source = source and teachers / source
        cell = Cell('teacher', None, pair, model, 0, arguments, teachers / model, teacher=source)
        found.append(cell)

    pairs = {d: p for d, p in protocol.pairs.items() if d in (args.directions or protocol.pairs)}
    for pair in pairs.values():
        add_teacher(pair.partition('_')[0], pair)
    for seed in args.seeds or range(protocol.seeds):
        for row in args.rows or protocol.rows:
            known = protocol.known_rows[row]
            alone = known.method == 'student'
            chosen = {
                f'model.distiller.{section}.{key}': value
                for section, part in (
                    ('connectors', 'connectors'),
                    ('distill_losses', 'losses'),
                    ('loss_schedules', 'schedules'),
                )
                for key, value in known.get(part, {}).items()
            }
            for direction, pair in pairs.items():
                model, student = pair.split('_')
                about = protocol.get('directions', {}).get(direction, {})
                flags = about.get('flags', protocol.student.get('flags', []))
                distilled = {} if alone else {**about.get('distilled', {}), **chosen}
                cached = about.get('cached') and not alone and known.get('cached', True)
                if not cached:
                    distilled = {k: v for k, v in distilled.items() if 'teacher_cache' not in k}
                full, *others = lengths(protocol, direction, row, seed)
                for epochs in (full, *others):
                    folder, here = work / pair / row, {}
                    if epochs is not None:
                        folder, here = folder / str(epochs), {'train_cfg.max_epochs': epochs}
                    here = {'randomness.seed': seed, **here, **distilled}
                    cell = Cell(
                        row=row,
                        direction=direction,
                        pair=pair,
                        model=student,
                        seed=seed,
                        options=options('student', pair, known.method, here, flags),
                        folder=folder / str(seed),
                        epochs=epochs,
                        full=epochs == full,
                        teacher=None if alone else teachers / model,
                        cache=work / 'cache' / model if cached else None,
                    )
                    found.append(cell)
    return found


def train(task: tuple[Path, list[str], list[str] | None, int]) -> None:
    """Train one cell in this process, and test it if options for that are given."""
    folder, arguments, test, threads = task
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)

    def run(tool: str, *args: str) -> None:
        sys.argv = [tool, *args]
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')

    with open(folder / 'console.log', 'a') as log:
        sys.stdout = sys.stderr = log
        try:
            run('train.py', *arguments, '--resume', 'auto')
            if test is not None and not (folder / 'test.json').is_file():
                (config,) = folder.glob('*.py')
                checkpoint = folder / Path((folder / 'last_checkpoint').read_text()).name
                run('test.py', str(config), str(checkpoint), f'--out={folder / "test.json"}', *test)
        except SystemExit as end:  # which would leave the pool waiting
            raise RuntimeError(f'{folder}: {end}') from end


def train_all(todo: list[Cell], args: argparse.Namespace, test: bool, what: str) -> None:
    """Train what is not trained yet, each in a process of its own."""
    root = args.work_dir
    data = {
        loader: [f'{loader}_dataloader.dataset.data_root={args.data_root}'] * bool(args.data_root)
        for loader in ('train', 'val', 'test')
    }
    tested = None
    if test:
        tested = ['--cfg-options', *data['test']] if args.data_root else []
    tasks = [
        (root / c.folder, c.arguments(root, *data['train'], *data['val']), tested, args.threads)
        for c in todo
    ]
    with multiprocessing.get_context('fork').Pool(args.workers, maxtasksperchild=1) as pool:
        for _ in track(pool.imap_unordered(train, tasks), what, total=len(tasks)):
            pass


def main() -> None:
    """Train all cells, and write record and tables."""
    args = parse_args()
    protocol = read_protocol(args.protocol, args.quick)
    known = cells(protocol, args)
    test = protocol.get('test', False)
    if not args.table:
        teachers = [c for c in known if c.row == 'teacher']
        # those that are distilled from others after these
        train_all([c for c in teachers if c.teacher is None], args, test, 'teachers')
        train_all([c for c in teachers if c.teacher], args, test, 'distilled teachers')
        train_all([c for c in known if c.row != 'teacher'], args, test, 'students')
    about = dict(
        protocol=protocol.name,
        seeds=len(args.seeds or range(protocol.seeds)),
        rules=protocol.get('rules', 'epochs' in protocol),
        torch=torch.__version__,
        threads=args.threads,
    )
    runs = [cell.record(args.work_dir, test) for cell in known if cell.finished(args.work_dir)]
    args.out.mkdir(parents=True, exist_ok=True)
    text = ',\n'.join(json.dumps(run) for run in runs)  # one run per line
    about = json.dumps(about)[:-1]
    file = args.out / f'{protocol.name}.json'
    file.write_text(f'{about}, "runs": [\n{text}\n]}}\n')
    about = json.loads(file.read_text())
    report.write(about, args.out)
    print(report.table(about), report.rule_table(about), sep='\n')


if __name__ == '__main__':
    cli.run(main)
