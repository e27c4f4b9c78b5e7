"""What several test files use."""

import contextlib
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS

REPO = Path(__file__).parents[1]
CONFIGS = REPO / 'tests/configs'
TINY = CONFIGS / 'tiny_distill.py'


def sampled(cases, quick):
    """Return cases for ``parametrize``, of which all but those at hand are slow."""
    for index, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        yield pytest.param(*values, marks=() if quick(index, case) else pytest.mark.slow)


def same(a, b):
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def environment(**changes):
    """The variables of a process of a user, with this package and this interpreter."""
    return {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'PYTHONPATH': f'{REPO}:{REPO}/tests',
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '',  # what they are compared with is of a CPU
        **changes,
    }


def run_tool(*args, cwd, ok=True, env=None):
    """Run ``python tools/... args`` as a user would; return the finished process."""
    process = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if ok:
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process


def in_new_process(code, *args):
    """Run Python code in a process of its own; return what it prints."""
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), *map(str, args)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.strip()


def train(*args, cwd, **kwargs):
    return run_tool(REPO / 'tools/train.py', *args, cwd=cwd, **kwargs)


def with_hooks(folder, teacher, method, *hooks):
    """Write a config that adds hooks of the tests, and a method, to the tiny one."""
    config = folder / 'config.py'
    config.write_text(
        f"_base_ = ['{TINY}', '{REPO}/configs/_base_/methods/{method}.py']\n"
        "custom_imports = dict(imports=['helpers'])\n"
        f"model = dict(teacher_ckpt='{teacher}', input_size=16,\n"
        '    distiller=dict(_delete_=True, **_base_.distiller))\n'
        f'custom_hooks = [*_base_.custom_hooks, {", ".join(map(repr, hooks))}]\n'
    )
    return config


def fails(*args, cwd, saying):
    """The tool ends with one sentence that says so, and without a traceback."""
    process = run_tool(*args, cwd=cwd, ok=False)
    output = process.stdout + process.stderr
    assert process.returncode == 1, output[-3000:]
    assert 'Traceback' not in output, output[-3000:]
    sentences = [line for line in process.stderr.splitlines() if line.startswith('error: ')]
    assert len(sentences) == 1, process.stderr[-3000:]
    for part in [saying] if isinstance(saying, str) else saying:
        assert part in sentences[0], sentences[0]
    return sentences[0]


def call(*args):
    """Run a tool in this process, where that is enough."""
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', list(map(str, args)))
        try:
            runpy.run_path(str(args[0]), run_name='__main__')
        finally:
            signal.signal(signal.SIGCHLD, handler)


def ends_with(*args):
    """Run a tool in this process; return the sentence it ends with."""
    with pytest.raises(SystemExit) as exit:
        call(*args)
    assert str(exit.value).startswith('error: '), exit.value
    return str(exit.value)


@HOOKS.register_module()
class KillHook(Hook):
    """Kill a process, as the kernel would, before a step of an epoch (from 1)."""

    def __init__(self, epoch, step, rank=0):
        self.at = (epoch - 1, step - 1, rank)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx, get_rank()) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class KillWorkerHook(Hook):
    """Kill a worker process of a data loader before a step of an epoch (from 1)."""

    def __init__(self, epoch, step):
        self.at = (epoch - 1, step - 1)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx) == self.at:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@HOOKS.register_module()
class OrderHook(Hook):
    """Append the epoch, the samples and the sum of the images of each step to a file."""

    def __init__(self, file):
        self.file = file

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        samples = [sample.sample_idx for sample in data_batch['data_samples']]
        images = data_batch['inputs'].double().sum().item()
        with open(self.file, 'a') as file:
            file.write(f'{runner.epoch} {samples} {images}\n')


@contextlib.contextmanager
def captured_log(level=logging.WARNING):
    """Collect the messages that any of mmengine's loggers writes, from a level upwards."""
    messages = []
    write = MMLogger.callHandlers

    def collect(self, record):
        if record.levelno >= level:
            messages.append(record.getMessage())
        write(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MMLogger, 'callHandlers', collect)
        yield messages
