"""Nothing is lost when something breaks: each fault is made to happen."""

import ast
import contextlib
import gc
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time

import cv2
import matplotlib.pyplot  # noqa: F401
import numpy as np
import pytest
import torch
from helpers import REPO, TINY, call, captured_log, ends_with, same, with_hooks
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import mmkd_tas.datasets
import mmkd_tas.models  # noqa: F401  (once, for the processes that are forked)
from mmkd_tas.checkpoint import find_checkpoint, read_checkpoint
from mmkd_tas.cli import explain, run
from mmkd_tas.errors import SetupError

TRAIN = REPO / 'tools/train.py'


def saved(file):
    """What a resumed run must share with the uninterrupted one."""
    checkpoint = read_checkpoint(file)
    return [checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')]


# --- killed ---------------------------------------------------------------------


def start(folder, *args):
    """Train in a new process, which need not import what this one has."""

    def child():
        gc.freeze()
        os.chdir(folder)
        sys.stdout = sys.stderr = open('output', 'a', buffering=1)  # noqa: SIM115
        call(TRAIN, *args)

    process = multiprocessing.get_context('fork').Process(target=child)
    process.start()
    return process


def begun(work_dir):
    """The temporary files of checkpoints: name, and time of the last change."""
    found = set()
    for file in work_dir.glob('.epoch_*'):
        with contextlib.suppress(FileNotFoundError):  # it is whole by now
            found.add((file.name, file.stat().st_mtime_ns))
    return found


def kill(process, work_dir, checkpoints, seconds):
    """Kill a run so long after it began its nth checkpoint; return what it left unfinished."""
    before, names = begun(work_dir), set()
    while process.is_alive() and len(names) < checkpoints:
        names.update(name for name, _ in begun(work_dir) - before)
    process.join(seconds)
    process.kill()
    process.join()
    return begun(work_dir) - before


@pytest.mark.skipif(torch.cuda.is_available(), reason='bit for bit on a CPU only')
@pytest.mark.parametrize('kills', [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_and_resumed(tmp_path, tiny_teacher, kills):
    """Every other time while a checkpoint is written. Run with -s for a record."""
    epochs = 5 * kills
    args = ['--work-dir', 'run', '--resume', 'auto', '--cfg-options', 'train_cfg.val_interval=999']
    args += [f'train_cfg.max_epochs={epochs}', f'param_scheduler.total_steps={5 * epochs}']
    whole, killed = (tmp_path / name for name in ('whole', 'killed'))
    for folder in (whole, killed):
        folder.mkdir()
        config = with_hooks(folder, tiny_teacher, 'kd')
    began = time.monotonic()
    process = start(whole, config, *args)
    while process.is_alive() and not list(whole.glob('run/*.pth')):
        time.sleep(0.01)
    start_up = time.monotonic() - began
    process.join()
    assert process.exitcode == 0, (whole / 'output').read_text()[-3000:]
    epoch = (time.monotonic() - began - start_up) / epochs
    print(f'\n{epochs} epochs of {epoch:.2f} s, the first after {start_up:.1f} s')

    rng = random.Random(kills)
    newest, partial, count = 0, 0, 0
    while count < kills or not partial:
        checkpoints = rng.randrange(3)
        seconds = rng.uniform(0, epoch if checkpoints else start_up)
        if count % 2 == 0:
            checkpoints, seconds = checkpoints + 1, 0
        process = start(killed, config, *args)
        cut = kill(process, killed / 'run', checkpoints, seconds)
        assert process.exitcode == -signal.SIGKILL, (killed / 'output').read_text()[-3000:]
        count += 1
        partial += bool(cut)
        found = {read_checkpoint(file)['meta']['epoch'] for file in killed.glob('run/*.pth')}
        when = f'while writing {cut.pop()[0]}' if cut else 'in between'
        print(f'kill {count}, {when}: whole checkpoints of epochs {sorted(found)}')
        assert not newest or max(found) >= newest
        newest = max(found, default=0)
        assert (find_checkpoint(killed / 'run') is None) == (not found)
    process = start(killed, config, *args)
    process.join()
    assert process.exitcode == 0
    assert same(*(saved(folder / f'run/epoch_{epochs}.pth') for folder in (whole, killed)))
    left = [file.name for file in killed.glob('run/.*')]  # of the kills alone, and for a day
    assert len(left) <= partial
    assert all(name.endswith('.part') for name in left)
    print(f'after {count} kills, {partial} of them while writing: equal to the uninterrupted run')


def test_a_killed_worker_is_told(tmp_path, tiny_teacher):
    config = with_hooks(tmp_path, tiny_teacher, 'kd', dict(type='KillWorkerHook', epoch=2, step=2))
    options = ['--cfg-options', 'train_dataloader.num_workers=2']
    process = start(tmp_path, config, *options)
    process.join()
    output = (tmp_path / 'output').read_text()
    assert process.exitcode == 1
    assert 'Traceback' not in output, output[-3000:]
    (told,) = [line for line in output.splitlines() if line.startswith('error: ')]
    # Which of the two is told depends on what PyTorch notices first.
    assert re.search('a data loader has died .*(is killed by|exited|Errno).*most often', told)
    assert 'lower num_workers' in told
    config = with_hooks(tmp_path, tiny_teacher, 'kd')
    process = start(tmp_path, config, '--resume', *options)
    process.join()
    assert process.exitcode == 0
    # A worker of the validation, which may be the one, is missed after the second epoch.
    output = (tmp_path / 'output').read_text()
    assert re.search(r'Resuming from \S*epoch_([12])\.pth, after epoch \1$', output, re.MULTILINE)
    assert (tmp_path / 'work_dirs/config/epoch_3.pth').is_file()


# --- damaged files --------------------------------------------------------------


@HOOKS.register_module()
class FullDiskHook(Hook):
    """Leave no room for a checkpoint, from an epoch (from 1) on."""

    def __init__(self, epoch):
        self.epoch = epoch

    def before_train_epoch(self, runner):
        if runner.epoch + 1 == self.epoch:
            # More than a log needs. The kernel counts each file by itself.
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))


def test_a_full_disk(tmp_path, monkeypatch, tiny_teacher):
    monkeypatch.chdir(tmp_path)
    config = with_hooks(tmp_path, tiny_teacher, 'kd', dict(type='FullDiskHook', epoch=2))
    work_dir = tmp_path / 'work_dirs/config'
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        message = ends_with(TRAIN, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "epoch_2.pth' cannot be written (File too large): make room" in message
    assert '--resume' in message
    assert [file.name for file in work_dir.glob('*.pth')] == ['epoch_1.pth']
    assert read_checkpoint(work_dir / 'epoch_1.pth')['meta']['epoch'] == 1
    (log,) = work_dir.glob('*/*.log')
    assert 'Traceback (most recent call last)' in log.read_text()
    assert not list(work_dir.glob('.*'))
    call(TRAIN, with_hooks(tmp_path, tiny_teacher, 'kd'), '--resume')
    assert read_checkpoint(work_dir / 'epoch_3.pth')['meta']['epoch'] == 3
    # what others write, as the log, ends without the name of a file
    with pytest.raises(OSError, match='No space left') as error, open('/dev/full', 'w') as file:
        file.write('x')
    assert explain(error.value).startswith('a file cannot be written (No space left on device)')


def test_a_truncated_checkpoint_is_passed_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(TRAIN, TINY)
    work_dir = tmp_path / 'work_dirs/tiny_distill'
    last = work_dir / 'epoch_3.pth'
    before = saved(last)
    last.write_bytes(last.read_bytes()[:20000])
    with captured_log() as messages:
        call(TRAIN, TINY, '--resume')
    assert any(
        'passing over a checkpoint' in m and 'epoch_3.pth' in m and 'not a whole' in m
        for m in messages
    )
    assert 'epoch_2.pth, after epoch 2' in capsys.readouterr().out
    assert same(saved(last), before)
    for file in work_dir.glob('*.pth'):
        file.write_bytes(file.read_bytes()[:20000])
    assert 'no whole checkpoint' in ends_with(TRAIN, TINY, '--resume')


@pytest.mark.parametrize(('backend', 'workers'), [('cv2', 0), ('pillow', 2)])
def test_broken_images_can_be_replaced(tmp_path, monkeypatch, backend, workers, capfd):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / f'images/{label}').mkdir(parents=True)
        for i in range(4):
            image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / f'images/{label}/{i}.jpg'), image)
    cut = {'0/0.jpg': 50, '3/1.jpg': 0, '9/3.jpg': -300}
    if backend == 'cv2':  # which fills the missing half of an image with grey
        del cut['9/3.jpg']
    for name, size in cut.items():
        file = tmp_path / 'images' / name
        file.write_bytes(file.read_bytes()[:size])
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{TINY}'\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', "
        f"data_root='{tmp_path}/images', pipeline=["
        f"dict(type='LoadImageFromFile', imdecode_backend='{backend}'), "
        "dict(type='Resize', scale=16), dict(type='PackInputs')]))\n"
    )
    options = [f'train_dataloader.num_workers={workers}']
    assert 'cannot be read as an image' in ends_with(TRAIN, config, '--cfg-options', *options)
    capfd.readouterr()
    options += ['train_dataloader.dataset.pipeline.0.ignore_empty=True']
    call(TRAIN, config, '--cfg-options', *options)
    assert (tmp_path / 'work_dirs/config/epoch_3.pth').is_file()
    output = ''.join(capfd.readouterr())
    told = [line for line in output.splitlines() if 'another one takes its place' in line]
    for name in cut:
        # once by each process that came across it
        assert 1 <= sum(name in line for line in told) <= max(workers, 1)
    assert all(any(name in line for name in cut) for line in told)


# --- malicious files ------------------------------------------------------------


class Evil:
    """Make a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('mark',)


@pytest.mark.parametrize(
    'tool',
    [
        [TRAIN, TINY, '--cfg-options', 'model.teacher_ckpt=evil.pth'],
        [TRAIN, TINY, '--cfg-options', 'load_from=evil.pth'],
        [TRAIN, TINY, '--resume', 'evil.pth'],
        [REPO / 'tools/test.py', TINY, 'evil.pth'],
        [REPO / 'tools/export_student.py', TINY, 'evil.pth', 'out.pth'],
    ],
    ids=['teacher_ckpt', 'load_from', 'resume', 'test', 'export'],
)
def test_no_tool_runs_what_is_in_a_checkpoint(tmp_path, monkeypatch, tool):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': Evil()}, 'evil.pth')
    message = ends_with(*tool)
    assert "'evil.pth' is refused: it wants to call" in message
    assert not (tmp_path / 'mark').exists()


def test_resuming_passes_over_a_malicious_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'work_dirs/tiny_distill').mkdir(parents=True)
    torch.save({'meta': Evil()}, 'work_dirs/tiny_distill/epoch_2.pth')
    assert 'no whole checkpoint' in ends_with(TRAIN, TINY, '--resume')
    assert not (tmp_path / 'mark').exists()


# What may look unsafe, and is made safe where it is: its tests are in
# tests/compat/test_checkpoints.py and tests/datasets/test_cifar100.py.
RESTRICTED = {
    ('mmkd_tas/compat/checkpoints.py', 'pickle.Unpickler'),
    ('mmkd_tas/compat/checkpoints.py', 'load(weights_only=False)'),
    ('mmkd_tas/compat/checkpoints.py', 'torch.load'),  # what it has just written
    ('mmkd_tas/datasets/cifar100.py', 'pickle.Unpickler'),
}


def unsafe(tree):
    """Yield what in a module could run code out of a file or a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ('pickle', 'marshal', 'shelve'):
            yield f'from {node.module} import'
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name in ('pickle.load', 'pickle.loads', 'pickle.Unpickler', 'yaml.load'):
                yield name
            if name.split('.')[0] in ('marshal', 'shelve', 'joblib', 'dill', 'cloudpickle'):
                yield name
            if name in ('os.system', 'os.popen', 'yaml.unsafe_load', 'yaml.full_load'):
                yield name
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            if name in ('eval', 'exec', 'compile'):
                yield name
            if name == 'torch.load' and options.get('weights_only') != 'True':
                yield name
            for option in ('weights_only=False', 'allow_pickle=True', 'shell=True'):
                key, _, value = option.partition('=')
                if options.get(key) == value:
                    yield f'{name}({option})'


def test_nothing_in_the_product_runs_code_out_of_files():
    found = set()
    for folder in ('mmkd_tas', 'tools', 'benchmarks'):
        files = list((REPO / folder).rglob('*.py'))
        assert files
        for file in files:
            for what in unsafe(ast.parse(file.read_text())):
                found.add((str(file.relative_to(REPO)), what))
    assert found == RESTRICTED


def _send(queue):
    queue.put(torch.ones(3))
    time.sleep(60)


def test_a_worker_that_is_gone_while_its_images_are_fetched():
    queue = torch.multiprocessing.get_context('fork').Queue()
    worker = multiprocessing.get_context('fork').Process(target=_send, args=(queue,))
    worker.start()
    while queue.empty():
        time.sleep(0.05)
    worker.kill()
    worker.join()
    with pytest.raises((OSError, EOFError)) as told:
        queue.get()
    assert 'a worker process of a data loader has died' in explain(told.value)


def test_a_worker_that_dies_within_the_try_of_other_code():
    died = "raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed.')"
    file = '/torch/utils/data/_utils/signal_handling.py'

    def formatted():  # as mmengine formats a config
        try:
            exec(compile(died, file, 'exec'))
        except Exception:
            raise SyntaxError('Failed to format the config file')  # noqa: B904

    with pytest.raises(SyntaxError) as told:
        formatted()
    assert 'a worker process of a data loader has died' in explain(told.value)


def test_a_worker_that_dies_while_an_error_is_explained():
    class MistakeError(SetupError):
        def __str__(self):
            signal.raise_signal(signal.SIGCHLD)
            return 'the mistake'

    def main():
        raise MistakeError

    def handler(*_):
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed.')

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        with pytest.raises(SystemExit, match='error: the mistake'):
            run(main)
    finally:
        signal.signal(signal.SIGCHLD, before)
