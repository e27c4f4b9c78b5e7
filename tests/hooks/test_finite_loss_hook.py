import itertools
import logging
import math

import numpy as np
import pytest
import torch
from helpers import TINY, captured_log, same
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmrazor.models import KLDivergence
from mmrazor.registry import MODELS as RAZOR_MODELS
from processes import run_processes
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd_tas.checkpoint import read_checkpoint
from mmkd_tas.errors import SetupError


@RAZOR_MODELS.register_module()
class BrokenLoss(KLDivergence):
    """Takes a value of its own in some of its calls, counted from 0, of one process."""

    def __init__(self, at, value, rank=0):
        super().__init__()
        self.at, self.value, self.rank, self.calls = at, float(value), rank, 0

    def forward(self, preds_S, preds_T):  # noqa: N803  (MMRazor's names)
        broken = self.calls in self.at and get_rank() == self.rank
        self.calls += 1
        return super().forward(preds_S, preds_T) * (self.value if broken else 1)


@HOOKS.register_module()
class BrokenImageHook(Hook):
    """Put a NaN into the images of a step, counted from 0."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            data_batch['inputs'] = [image.float() for image in data_batch['inputs']]
            data_batch['inputs'][0][0, 0, 0] = math.nan


@HOOKS.register_module()
class WatchHook(Hook):
    """Remember, after every step, the state, the optimizer's count, and whether gradients wait."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.states, self.steps, self.waiting = [], [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append({k: v.clone() for k, v in runner.model.state_dict().items()})
        state = runner.optim_wrapper.optimizer.state_dict()['state'].values()
        self.steps.append({int(entry['step']) for entry in state})
        self.waiting.append(any(p.grad is not None for p in runner.model.parameters()))


def broken_loss(at, value=math.nan, rank=0):
    cfg = dict(_delete_=True, type='mmrazor.BrokenLoss', at=list(at), value=value, rank=rank)
    return {'model.distiller.distill_losses.loss_kd': cfg}


_names = itertools.count()


def run_of(tmp_path, *hooks, action='stop', **changes):
    config = Config.fromfile(TINY)
    config.merge_from_dict(
        {
            'work_dir': str(tmp_path),
            # runs of one second would share their records otherwise
            'experiment_name': f'finite{next(_names)}',
            'train_cfg.max_epochs': 2,
            'val_cfg': None,
            'val_dataloader': None,
            'val_evaluator': None,
            'default_hooks.finite_loss.action': action,
            'custom_hooks': list(hooks),
            **changes,
        }
    )
    return Runner.from_cfg(config)


def hook_of(run, kind):
    return next(hook for hook in run.hooks if type(hook).__name__ == kind)


def test_the_run_stops_and_names_the_term(tmp_path):
    run = run_of(tmp_path, **broken_loss([7], math.inf))
    with pytest.raises(SetupError, match='^distill.loss_kd is inf in epoch 2, step 3: '):
        run.train()
    # and nothing of it is saved
    assert [file.name for file in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    weights = read_checkpoint(tmp_path / 'epoch_1.pth')['state_dict'].values()
    assert all(value.isfinite().all() for value in weights)


def test_a_nan_image_is_told_by_every_term(tmp_path):
    run = run_of(tmp_path, dict(type='BrokenImageHook', at=1))
    with pytest.raises(SetupError, match='^student.loss is nan and distill.loss_kd is nan in '):
        run.train()


def test_the_sum_alone_can_overflow(tmp_path):
    class Largest(Hook):
        priority = 0  # before the hook looks

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            outputs['loss'] = outputs['loss'] * math.inf

    run = run_of(tmp_path)
    run._hooks.insert(0, Largest())
    with pytest.raises(SetupError, match='^loss is inf in epoch 1, step 1'):
        run.train()


def test_a_step_left_out_changes_nothing_but_the_schedule(tmp_path):
    """In a student with BatchNorm, whose running means a NaN in the images would spoil."""
    student = Config.fromfile(TINY).model.teacher
    hooks = [
        *[dict(type='BrokenImageHook', at=2), dict(type='WatchHook')],
        dict(type='EMAHook', momentum=0.5),
    ]
    changes = {'model.architecture': dict(_delete_=True, **student)}
    run = run_of(tmp_path, *hooks, action='skip', **changes)
    with captured_log() as messages:
        run.train()
    watch = hook_of(run, 'WatchHook')
    before, after, then = watch.states[1:4]
    assert 'architecture.backbone.bn1.running_mean' in after
    assert same(before, after)
    assert not same(after, then)
    assert watch.steps[1:4] == [{2}, {2}, {3}]
    assert [m for m in messages if 'step left out' in m] == [
        'student.loss is nan and distill.loss_kd is nan in epoch 1, step 3: step left out, 1 so far'
    ]
    checkpoint = read_checkpoint(tmp_path / 'epoch_2.pth')
    for weights in (checkpoint['state_dict'], checkpoint['ema_state_dict']):
        assert all(value.isfinite().all() for value in weights.values())
    hub = checkpoint['message_hub']
    assert hub['runtime_info']['skipped_steps'] == 1
    for name, counted in [('train/loss', 9), ('train/lr', 10)]:
        values = hub['log_scalars'][name].data[0]
        assert len(values) == counted
        assert np.isfinite(values).all()
    assert checkpoint['param_schedulers'][0]['_global_step'] == 10
    # going on, it keeps the count
    more = {'resume': True, 'train_cfg.max_epochs': 3, **changes}
    run = run_of(tmp_path, hooks[2], dict(type='BrokenImageHook', at=11), action='skip', **more)
    run.train()
    assert run.message_hub.get_info('skipped_steps') == 2


def test_steps_are_not_left_out_for_ever(tmp_path):
    at = [i for i in range(15) if i != 2]
    run = run_of(tmp_path, action='skip', **broken_loss(at), **{'train_cfg.max_epochs': 3})
    with captured_log() as messages, pytest.raises(SetupError, match='epoch 3, step 3, and so '):
        run.train()
    assert sum('step left out' in message for message in messages) == 2 + 9
    assert run.iter == 12


@pytest.mark.parametrize('at', [2, 3])
def test_accumulated_gradients(tmp_path, at):
    """Of an update from two steps: the other counts alone, or the update is left out."""
    changes = {'optim_wrapper.accumulative_counts': 2, **broken_loss([at])}
    run = run_of(tmp_path, dict(type='WatchHook'), action='skip', **changes)
    run.train()
    watch = hook_of(run, 'WatchHook')
    updates = [i for i in range(1, 10) if not same(watch.states[i - 1], watch.states[i])]
    assert updates == ([1, 3, 5, 7, 9] if at == 2 else [1, 5, 7, 9])
    assert watch.waiting[:5] == [True, False, at == 3, False, True]
    assert all(v.isfinite().all() for v in watch.states[-1].values())


@pytest.mark.parametrize('action', ['stop', 'skip'])
@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='scales losses on GPUs only')
@pytest.mark.skipif(torch.cuda.is_available(), reason='mmengine scales on the GPU then')
def test_gradients_that_overflow_are_left_to_the_loss_scaler(tmp_path, action):
    amp = {'optim_wrapper.type': 'AmpOptimWrapper', 'train_cfg.max_epochs': 1}
    run = run_of(tmp_path, dict(type='WatchHook'), action=action, **amp)
    run.optim_wrapper = run.build_optim_wrapper(run.optim_wrapper)
    scaler = run.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
    with captured_log() as messages:
        run.train()
    assert not any('left out' in message for message in messages)
    watch = hook_of(run, 'WatchHook')
    steps = [max(seen, default=0) for seen in watch.steps]
    assert steps[0] == 0  # the scaler left it out
    assert 'skipped_steps' not in run.message_hub.runtime_info
    assert scaler.get_scale() < 2.0**127


def test_a_step_left_out_does_not_touch_the_loss_scaler(tmp_path):
    amp = {'optim_wrapper.type': 'AmpOptimWrapper', 'train_cfg.max_epochs': 1}
    run = run_of(tmp_path, dict(type='WatchHook'), action='skip', **amp, **broken_loss([3]))
    run.train()
    watch = hook_of(run, 'WatchHook')
    assert same(watch.states[2], watch.states[3])
    assert watch.steps[-1] == {4}


@pytest.mark.parametrize('action', ['stop', 'skip'])
def test_what_the_last_step_has_broken_is_not_saved(tmp_path, action):
    """An epoch of one step: its loss was finite."""
    one = {
        'train_dataloader.batch_size': 40,
        'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=math.nan),
    }
    run = run_of(tmp_path, action=action, param_scheduler=None, **one)
    with pytest.raises(SetupError, match='of the weights are NaN or infinite after step 1, arch'):
        run.train()
    assert not list(tmp_path.glob('*.pth'))


def test_actions_are_checked():
    with pytest.raises(SetupError, match="action='ignore' is neither 'stop' nor 'skip'"):
        HOOKS.build(dict(type='mmkd_tas.FiniteLossHook', action='ignore'))


def _two(rank, folder, action):
    """What process `rank` ends with, when the loss of process 1 is NaN in its second step."""
    logging.disable()
    changes = {'train_cfg.max_epochs': 1, **broken_loss([1], rank=1)}
    run = run_of(folder, dict(type='WatchHook'), action=action, **changes)
    run.model = MMDistributedDataParallel(run.model)
    try:
        run.train()
    except SetupError as error:
        return str(error)
    watch = hook_of(run, 'WatchHook')
    return [{k: v.numpy() for k, v in state.items()} for state in watch.states]


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about gloo')
@pytest.mark.parametrize('action', ['stop', 'skip'])
def test_processes_stop_or_leave_out_together(tmp_path, action):
    one, other = run_processes(_two, tmp_path, action)
    if action == 'stop':
        assert one == other
        assert one.startswith('distill.loss_kd is nan in epoch 1, step 2: ')
        return
    for a, b in zip(one, other, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert np.isfinite(a[key]).all()
    changed = [any((a[k] != b[k]).any() for k in a) for a, b in itertools.pairwise(one)]
    assert changed.count(False) == 1
    assert not changed[0]


class Reads(TorchDispatchMode):
    """Note the steps of a run in which a number is read that a GPU would have computed."""

    def __init__(self, run):
        super().__init__()
        self.run, self.steps = run, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Integers are read on the CPU alone: sizes, labels and numbers of epochs.
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
            self.steps.append(self.run.iter)
        return func(*args, **(kwargs or {}))


def test_no_step_reads_a_value_before_it_is_logged(tmp_path):
    changes = {
        'default_hooks.logger.interval': 4,
        'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.01),  # AdamW reads its step
        'train_cfg.max_epochs': 1,
    }
    run = run_of(tmp_path, **changes)
    with Reads(run) as reads:
        run.train()
    assert not {1, 2} & {*reads.steps}
    record = read_checkpoint(tmp_path / 'epoch_1.pth')['message_hub']['log_scalars']
    for name in ('lr', 'student.loss', 'distill.loss_kd', 'loss'):
        assert len(record[f'train/{name}'].data[0]) == 5, name


def test_a_loss_that_breaks_between_two_logs_is_told_with_its_step(tmp_path):
    run = run_of(tmp_path, **{'default_hooks.logger.interval': 100}, **broken_loss([1, 3]))
    with pytest.raises(SetupError, match='^distill.loss_kd is nan in epoch 1, step 2: '):
        run.train()
    assert not [*tmp_path.glob('*.pth')]
