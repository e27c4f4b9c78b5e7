"""Checkpoints are safe to load, and whole."""

import os
import pickle
import resource
import signal
import uuid
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
import torch
from helpers import TINY
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper, scheduler
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader, Runner, save_checkpoint
from processes import run_together
from torch import nn

from mmkd_tas.compat import write_whole


def load(file):
    return CheckpointLoader.load_checkpoint(str(file), 'cpu', logger='silent')


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'evil',
    [
        lambda mark: Evil(os.mkdir, mark),
        lambda mark: Evil(os.system, f'mkdir {mark}'),
        lambda mark: Evil(eval, f'__import__("os").mkdir({mark!r})'),
        lambda mark: Evil(getattr, OrderedDict, 'fromkeys'),
        lambda mark: Evil(getattr, HistoryBuffer, '__init__'),
        lambda mark: np.array([Evil(os.mkdir, mark)], dtype=object),
        lambda mark: {'log': HistoryBuffer([1.0], [1]), 'x': Evil(os.mkdir, mark)},
    ],
)
def test_a_checkpoint_cannot_run_code(tmp_path, evil, zipped):
    mark = tmp_path / 'mark'
    file = tmp_path / 'evil.pth'
    content = {'state_dict': {'w': torch.ones(1)}, 'meta': evil(str(mark))}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        load(file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)
    assert not mark.exists()


def test_a_downloaded_checkpoint_cannot_run_code(tmp_path):
    mark = tmp_path / 'mark'
    torch.save({'x': Evil(os.mkdir, str(mark))}, tmp_path / 'evil.pth')
    from mmengine.runner.checkpoint import load_url

    with pytest.raises(pickle.UnpicklingError):
        load_url((tmp_path / 'evil.pth').as_uri(), model_dir=str(tmp_path / 'cache'))
    assert not mark.exists()


def test_resuming_does_not_execute_the_config_in_the_checkpoint(tmp_path):
    mark = tmp_path / 'mark'
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 1
    Runner.from_cfg(config).train()
    checkpoint = load(tmp_path / 'epoch_1.pth')
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(mark)!r})'
    torch.save(checkpoint, tmp_path / 'evil.pth')
    config.load_from, config.resume = str(tmp_path / 'evil.pth'), True
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.epoch == 1
    assert not mark.exists()


def test_everything_mmengine_writes_can_be_read(tmp_path):
    """Log history, numbers of NumPy, optimizer, and every scheduler it has."""
    model = nn.Linear(2, 2)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    wrapper.update_params(model(torch.ones(1, 2)).sum())
    arguments = {
        'MultiStepLR': dict(milestones=[1]),
        'StepLR': dict(step_size=1),
        'PolyLR': dict(),
        'OneCycleLR': dict(eta_max=0.1, total_steps=4),
        'CosineRestartLR': dict(periods=[2], eta_min=0.0),
        'ExponentialLR': dict(gamma=0.9),
        'CosineAnnealingLR': dict(T_max=4),
        'LinearLR': dict(),
        'ConstantLR': dict(),
        'ReduceOnPlateauLR': dict(monitor='loss'),
        'LinearMomentum': dict(),
    }
    schedulers = {
        name: PARAM_SCHEDULERS.build(dict(type=name, optimizer=wrapper, **kwargs)).state_dict()
        for name, kwargs in arguments.items()
        if hasattr(scheduler, name)
    }
    hub = MessageHub('test_everything')
    hub.update_scalar('train/loss', 1.5)
    hub.update_info('metrics', {'top1': np.float32(3), 'n': np.int64(4), 'all': np.arange(3)})
    checkpoint = {
        'optimizer': wrapper.state_dict(),
        'param_schedulers': schedulers,
        'message_hub': hub.state_dict(),
        'meta': {'version': mmengine.__version__, 'classes': ('a', 'b'), 'dtype': np.dtype('f4')},
    }
    save_checkpoint(checkpoint, str(tmp_path / 'all.pth'))
    read = load(tmp_path / 'all.pth')
    assert read['message_hub']['log_scalars']['train/loss'].mean() == 1.5
    assert read['message_hub']['runtime_info']['metrics']['all'].tolist() == [0, 1, 2]
    assert read['param_schedulers'].keys() == schedulers.keys()
    assert read['meta'] == checkpoint['meta']
    state = read['optimizer']['state'][0]['momentum_buffer']
    assert torch.equal(state, wrapper.state_dict()['state'][0]['momentum_buffer'])


def _fill(rank, barrier, folder):
    os.chdir(folder)
    write_whole(b'old', 'file')
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a disk of 1,000 bytes
    with pytest.raises(OSError, match="File too large: 'file'"):
        LocalBackend().put(b'new' * 1000, 'file')


def test_a_full_disk_leaves_the_old_file(tmp_path):
    run_together(_fill, tmp_path, processes=1)
    assert (tmp_path / 'file').read_bytes() == b'old'
    assert [file.name for file in tmp_path.iterdir()] == ['file']


def _write(rank, barrier, folder):
    barrier.wait(60)
    for _ in range(100):
        write_whole(bytes([rank]) * 100_000, folder / 'file')


def test_several_processes_may_write_the_same_file(tmp_path):
    run_together(_write, tmp_path)
    assert (tmp_path / 'file').read_bytes() in (b'\0' * 100_000, b'\1' * 100_000)
    assert [file.name for file in tmp_path.iterdir()] == ['file']


def test_what_a_killed_process_left_of_a_file_goes_with_a_later_one(tmp_path):
    write_whole(b'1', tmp_path / 'epoch_1.pth')
    remains = [tmp_path / f'.epoch_{i}.pth.{uuid.uuid4().hex}.part' for i in (2, 3)]
    for file in (*remains, tmp_path / '.mine.part'):
        file.write_bytes(b'half')
    for file in (remains[0], tmp_path / '.mine.part'):
        os.utime(file, (0, 0))
    write_whole(b'3', tmp_path / 'epoch_3.pth')
    assert not remains[0].exists()
    assert remains[1].exists()  # another may be writing it now
    assert (tmp_path / '.mine.part').exists()


def test_the_old_checkpoint_goes_when_the_new_one_is_whole(tmp_path, monkeypatch):
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 2
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    runner = Runner.from_cfg(config)
    save = runner.save_checkpoint

    def fail_at_second(out_dir, filename, *args, **kwargs):
        if filename == 'epoch_2.pth':
            raise OSError('disk full')
        save(out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(runner, 'save_checkpoint', fail_at_second)
    with pytest.raises(OSError, match='disk full'):
        runner.train()
    assert load(tmp_path / 'epoch_1.pth')['meta']['epoch'] == 1
    assert not (tmp_path / 'epoch_2.pth').exists()
    monkeypatch.undo()
    config.resume = True
    Runner.from_cfg(config).train()
    assert [file.name for file in tmp_path.glob('*.pth')] == ['epoch_2.pth']
