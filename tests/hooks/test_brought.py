"""A distillation is safe in a config of the user's own, with any runner."""

import math
from pathlib import Path

import mmpretrain
import pytest
import torch
from helpers import REPO, TINY, call, ends_with
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmkd_tas.errors import SetupError
from mmkd_tas.hooks import EpochSeedHook, FiniteLossHook, PreflightHook, ProgressHook

KINDS = (EpochSeedHook, FiniteLossHook, PreflightHook, ProgressHook)
TRAIN = REPO / 'tools/train.py'
MMPRETRAIN = Path(mmpretrain.__file__).parent / '.mim/tools/train.py'


def config_of(tmp_path, **changes):
    """A config that knows nothing of this package but the data and the model."""
    config = Config.fromfile(TINY)
    for key in ('default_hooks', 'custom_hooks', 'visualizer', 'env_cfg'):
        config.pop(key)
    config.param_scheduler = None
    config.train_cfg.max_epochs = 1
    config.work_dir = str(tmp_path / 'run')
    config.merge_from_dict(changes)
    return config


def mixed(tmp_path, custom_hooks=()):
    """Add a teacher and a method to a config, as README.md does; its learning rate is NaN."""
    student = config_of(tmp_path)
    student.model = student.model.architecture
    student.optim_wrapper.optimizer = dict(type='SGD', lr=math.nan)  # AdamW would refuse it
    for loader in ('train_dataloader', 'val_dataloader'):
        student[loader].num_workers = 1  # mmpretrain's tool keeps them, and so needs some
    student.custom_hooks = list(custom_hooks)
    text = student.pretty_text.replace('nan', "float('nan')")
    (tmp_path / 'mine.py').write_text(text)
    teacher = Config.fromfile(TINY).model.teacher.to_dict()
    (tmp_path / 'mixed.py').write_text(
        f"_base_ = ['mine.py', '{REPO}/configs/_base_/methods/kd.py']\n"
        "custom_imports = dict(imports=['mmkd_tas'])\n"
        'model = dict(\n'
        "    _delete_=True, type='mmkd_tas.CrossArchDistill', architecture=_base_.model,\n"
        f'    input_size=16, teacher={teacher}, random_teacher=True,\n'
        '    distiller=_base_.distiller)\n'
    )
    return tmp_path / 'mixed.py'


def hooks_of(run):
    return [next(kind for kind in KINDS if isinstance(hook, kind)) for hook in ours(run)]


def ours(run):
    return sorted(
        (hook for hook in run.hooks if isinstance(hook, KINDS)), key=lambda h: type(h).__name__
    )


EMA = dict(type='EMAHook', momentum=4e-5)


@pytest.mark.parametrize(
    'custom_hooks', [pytest.param([], marks=pytest.mark.slow), [EMA]], ids=['none', 'ema']
)
def test_a_broken_run_ends_with_an_error(tmp_path, monkeypatch, custom_hooks):
    """With our tools, with mmpretrain's, and with a runner of the user's own."""
    monkeypatch.chdir(tmp_path)
    file = mixed(tmp_path, custom_hooks)
    saying = 'student.loss is nan and distill.loss_kd is nan in epoch 1, step 2'
    assert saying in ends_with(TRAIN, file)
    with pytest.raises(SetupError, match=saying):
        call(MMPRETRAIN, file)
    run = Runner.from_cfg(Config.fromfile(file))
    assert any(isinstance(hook, EMAHook) for hook in run.hooks) == bool(custom_hooks)
    with pytest.raises(SetupError, match=saying):
        run.train()
    assert not list(tmp_path.rglob('*.pth'))


@HOOKS.register_module()
class LenientHook(FiniteLossHook):
    """One of the user's own, instead of its base."""


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'custom_hooks': []},
        {'custom_hooks': [EMA]},
        {'default_hooks': None},
        {'default_hooks': dict(logger=dict(type='LoggerHook', interval=1))},
        {'custom_hooks': [dict(type=f'mmkd_tas.{kind.__name__}') for kind in KINDS]},
        {'_base_hooks': True},
    ],
    ids=lambda changes: ' '.join(changes) or 'nothing',
)
def test_each_hook_is_there_once(tmp_path, changes):
    changes = dict(changes)
    if changes.pop('_base_hooks', False):
        base = Config.fromfile(REPO / 'configs/_base_/default_runtime.py')
        changes = {'default_hooks': base.default_hooks, 'custom_hooks': base.custom_hooks}
    run = Runner.from_cfg(config_of(tmp_path, **changes))
    assert hooks_of(run) == list(KINDS)


SKIP = dict(type='mmkd_tas.FiniteLossHook', action='skip')


@pytest.mark.parametrize(
    'changes',
    [
        {'custom_hooks': [SKIP]},
        {'custom_hooks': [{**SKIP, 'type': 'LenientHook', 'priority': 'HIGH'}]},
        {'default_hooks': dict(finite_loss=SKIP)},
        {'default_hooks': dict(finite_loss=dict(action='skip'))},
        {'default_hooks': dict(mine=SKIP)},
        {'default_hooks': dict(finite_loss=None), 'custom_hooks': [SKIP]},
    ],
)
def test_a_hook_of_the_same_type_takes_its_place(tmp_path, changes):
    run = Runner.from_cfg(config_of(tmp_path, **changes))
    assert hooks_of(run) == list(KINDS)
    assert ours(run)[1].action == 'skip'
    if 'LenientHook' in str(changes):
        assert ours(run)[1].priority == 'HIGH'


@pytest.mark.parametrize('key', ['default_hooks', 'custom_hooks'])
def test_so_does_an_object(tmp_path, key):
    config, hook = config_of(tmp_path), FiniteLossHook('skip')
    hooks = {'default_hooks': {'finite_loss': hook}, 'custom_hooks': [hook]}
    run = Runner(config.model, config.work_dir, default_scope='mmpretrain', **{key: hooks[key]})
    assert hooks_of(run) == list(KINDS)
    assert ours(run)[1] is hook


def test_a_hook_that_is_registered_later_takes_its_place(tmp_path):
    run = Runner.from_cfg(config_of(tmp_path))
    run.register_hook(SKIP, priority='LOW')
    assert hooks_of(run) == list(KINDS)
    assert (ours(run)[1].action, ours(run)[1].priority) == ('skip', 'LOW')
    assert SKIP.keys() == {'type', 'action'}
    for _ in range(2):  # as often as one likes, others
        run.register_hook(Hook())
    assert sum(type(hook) is Hook for hook in run.hooks) == 2


@pytest.mark.parametrize('name', ['preflight', 'epoch_seed', 'finite_loss', 'progress'])
def test_each_is_switched_off_by_name(tmp_path, name):
    run = Runner.from_cfg(config_of(tmp_path, default_hooks={name: None, 'timer': None}))
    left = [kind.__name__ for kind in hooks_of(run)]
    assert name.replace('_', '') + 'hook' not in [kind.lower() for kind in left]
    assert len(left) == 3


def test_a_training_without_distillation_has_them_with_our_tools(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed(tmp_path, [EMA])
    assert 'loss is nan in epoch 1, step 2' in ends_with(TRAIN, 'mine.py')
    torch.save({'state_dict': {'fc.weight': torch.ones(1)}}, 'other.pth')
    told = ends_with(TRAIN, 'mine.py', '--cfg-options', 'load_from=other.pth')
    assert "load_from: 'other.pth' is of another architecture" in told
    assert '1 unexpected: fc.weight' in told
    off = ['default_hooks.finite_loss=None', 'model.head.num_classes=10']
    call(TRAIN, 'mine.py', '--cfg-options', *off)
    assert (tmp_path / 'run/epoch_1.pth').is_file()
