"""Training with several processes, with accumulated gradients and with averaged weights."""

import contextlib
import copy
import json
import os
import runpy
import signal
import subprocess
import sys
import time

import mmengine
import pytest
import torch
from helpers import REPO, TINY, ends_with, environment, same
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import convert_sync_batchnorm
from mmengine.runner import Runner
from pairs import batch, distillation, total
from processes import free_port, run_processes
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from mmkd_tas import cli
from mmkd_tas.checkpoint import read_checkpoint
from mmkd_tas.errors import SetupError
from mmkd_tas.models.utils import unwrapped

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason='the processes are forked, which CUDA does not survive'
)
SLOW = pytest.mark.slow
# The parts of the mixtures are methods of their own.
METHODS = ['dkd', 'dist', 'tas', 'ofa-rsd', 'tas-hcd', 'crd']
METHODS += [
    pytest.param(m, marks=SLOW) for m in ('kd', 'ofa', 'hcd', 'rsd', 'tas-rsd', 'fitnet', 'pat')
]
MIXER = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MlpMixer',
        arch=dict(embed_dims=24, num_layers=4, tokens_mlp_dims=16, channels_mlp_dims=48),
        img_size=16,
        patch_size=4,
    ),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(type='LinearClsHead', in_channels=24, num_classes=10),
)


def setup(folder, method, options=None, **sections):
    """The tiny config with a method, without what draws random numbers in each process."""
    config = Config.fromfile(TINY)
    config.model.distiller = Config.fromfile(REPO / f'configs/_base_/methods/{method}.py').distiller
    config.model.teacher = copy.deepcopy(MIXER)
    config.model.input_size = 16
    config.model.architecture.backbone.update(drop_rate=0.0, drop_path_rate=0.0)
    config.model.architecture.train_cfg = None
    config.param_scheduler = None
    config.train_cfg.max_epochs = 1
    config.train_dataloader.dataset.serialize_data = False
    config.default_hooks.checkpoint = None
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.log_level = 'ERROR'
    config.work_dir = str(folder)
    config.update(sections)
    config.merge_from_dict(options or {})
    return config


def call_tool(tool, *args):
    """Run a tool in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', list(map(str, (tool, *args))))
        runpy.run_path(str(tool), run_name='__main__')


class Recorder(Hook):
    """Keep the losses and the gradients of each step; statistics of BatchNorm stand still."""

    def __init__(self, freeze=True):
        self.freeze = freeze
        self.losses = []
        self.gradients = []
        self.first = {}
        self.weights = []

    def before_train(self, runner):
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_pre_hook(lambda *_: self.gradients.append(gradients(runner.model)))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            if self.freeze and isinstance(module, _BatchNorm):
                module.eval()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: float(value) for key, value in outputs.items()})
        self.first = self.first or gradients(runner.model)
        self.weights.append(copy.deepcopy(unwrapped(runner.model).state_dict()))


def gradients(model):
    parameters = unwrapped(model).named_parameters()
    return {name: p.grad.clone() for name, p in parameters if p.grad is not None}


def train(rank, config, batch_size, freeze=True):
    """Train in float64 with mmengine's Runner, alone (rank None) or as one of a group."""
    os.environ['LOCAL_RANK'] = '0'
    config = copy.deepcopy(config)
    config.launcher = 'none' if rank is None else 'pytorch'
    config.experiment_name = f'{rank} {time.time_ns()}'
    config.train_dataloader.batch_size = batch_size
    recorder = Recorder(freeze)
    torch.set_default_dtype(torch.float64)
    try:
        runner = Runner.from_cfg(config)
        runner.register_hook(recorder, 'HIGHEST')
        runner.train()
    finally:
        torch.set_default_dtype(torch.float32)
    state = {key: value.clone() for key, value in unwrapped(runner.model).state_dict().items()}
    return recorder.losses, recorder.gradients, state, recorder.first


def assert_close(got, expected, tolerance=1e-9):
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        scale = 1 + value.abs().max()
        assert (got[key] - value).abs().max() <= tolerance * scale, key


def assert_same_training(processes, one):
    """Gradients and weights of each process equal those of one, and the mean of the losses."""
    losses, steps, state, _ = one
    for _, own_steps, own_state, _ in processes:
        assert len(own_steps) == len(steps) > 0
        for got, expected in zip(own_steps, steps, strict=True):
            assert_close(got, expected)
        assert_close(own_state, state)
    for step, expected in enumerate(losses):
        for name in (name for name in expected if 'loss' in name):
            mean = sum(process[0][step][name] for process in processes) / len(processes)
            assert mean == pytest.approx(expected[name], rel=1e-9), name


# --- Several processes are one with the whole batch ----------------------------


@pytest.mark.parametrize('method', METHODS)
def test_two_processes_equal_one_with_the_whole_batch(tmp_path, method):
    """BatchNorm set aside; of DIST, the relation within images (that within classes is next)."""
    alone = {'model.distiller.distill_losses.loss_dist.intra_loss_weight': 0.0}
    config = setup(tmp_path, method, alone if method == 'dist' else None)
    assert_same_training(run_processes(train, config, 4), train(None, config, 8))


RECOMPUTED = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, with_cp=True),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=32, num_classes=10),
)


def test_stages_that_run_twice_and_are_recomputed(tmp_path):
    """The student's last stages are the assistant's, too, and neither keeps activations."""
    config = setup(tmp_path, 'tas')
    config.model.architecture = copy.deepcopy(RECOMPUTED)
    config.model.distiller.connectors.assistant.first = 'teacher'
    config.train_dataloader.dataset.update(indices=16, num_train=100)
    processes = run_processes(train, config, 4)
    config.model.architecture.backbone.with_cp = False
    assert_same_training(processes, train(None, config, 8))


def test_dist_relates_the_images_of_each_process(tmp_path):
    config = setup(tmp_path, 'dist')
    (_, one, _, _), (_, two, _, _) = train(None, config, 8), run_processes(train, config, 4)[0]
    name = 'architecture.head.fc.weight'
    assert (one[0][name] - two[0][name]).abs().max() > 1e-3 * one[0][name].abs().max()


# 43 images: the last batches of the two processes have 6 and 5, and together 11
UNEVEN = dict(indices=43, num_train=100)


@pytest.mark.parametrize('losses', [['loss_ts_features', 'loss_as_features'], ['loss_rsd']])
def test_losses_that_compare_images_take_batches_of_different_sizes(tmp_path, losses):
    """Each row counts once, wherever it is."""
    config = setup(tmp_path, 'rsd' if losses == ['loss_rsd'] else 'tas')
    config.train_dataloader.dataset.update(UNEVEN)
    config.train_dataloader.sampler.round_up = False
    config.model.calculate_student_loss = False
    config.find_unused_parameters = True
    distiller = config.model.distiller
    for key in ('distill_losses', 'loss_forward_mappings'):
        distiller[key] = {name: distiller[key][name] for name in losses}
    processes, one = run_processes(train, config, 8), train(None, config, 16)
    assert len(one[1]) == 3
    assert_same_training(processes, one)


class Exchanges(TorchDispatchMode):
    """Counts how often processes tell each other a number, which each then waits for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == 'c10d::allgather_' and args[1][0].numel() == 1:
            self.count += 1
        return func(*args, **(kwargs or {}))


def _exchanges(rank, config):
    """Train; return the numbers of exchanges of the steps."""
    os.environ['LOCAL_RANK'] = '0'
    config.launcher = 'pytorch'
    runner = Runner.from_cfg(config)
    counts = []
    loss = runner.model.module.loss

    def counted(*args):
        with Exchanges() as mode:
            losses = loss(*args)
        counts.append(mode.count)
        return losses

    runner.model.module.loss = counted
    runner.train()
    return counts


@pytest.mark.parametrize(
    ('indices', 'off', 'expected'),
    [
        (32, [], [0, 0]),
        (31, [], [1, 1]),  # 8 and 8, then 8 and 7
        (32, ['preflight'], [1, 1]),
    ],
)
def test_processes_tell_each_other_their_numbers_of_images_once(tmp_path, indices, off, expected):
    """Not once for each loss; never where batches are known to be equal."""
    config = setup(tmp_path, 'tas')
    config.default_hooks.update(dict.fromkeys([*off, 'finite_loss']))
    config.train_dataloader.dataset.update(indices=indices, num_train=100)
    config.train_dataloader.sampler.round_up = False
    config.train_dataloader.batch_size = 8
    for counts in run_processes(_exchanges, config):
        assert counts == expected


def test_means_over_images_are_averaged_over_processes(tmp_path):
    """As everywhere under DDP: an image of a smaller batch weighs more."""
    config = setup(tmp_path, 'kd')
    pipeline = [dict(type='PackInputs')]
    config.train_dataloader.dataset.update(indices=7, num_train=100, pipeline=pipeline)
    config.train_dataloader.sampler.update(round_up=False, shuffle=False)
    parts = []
    for indices in ([0, 2, 4, 6], [1, 3, 5]):
        part = copy.deepcopy(config)
        part.train_dataloader.dataset.indices = indices
        parts.append(train(None, part, 4)[1][0])
    mean = {name: (a + parts[1][name]) / 2 for name, a in parts[0].items()}
    for process in run_processes(train, config, 4):
        assert_close(process[1][0], mean)


def _refusal(rank, config, batch_size):
    try:
        train(rank, config, batch_size)
    except (SetupError, ValueError) as error:
        return cli.explain(error)


def test_unequal_numbers_of_batches_are_refused(tmp_path):
    """Else the process with more of them would wait for the other forever."""
    config = setup(tmp_path, 'kd')
    config.train_dataloader.dataset.update(indices=9, num_train=100)
    config.train_dataloader.sampler.round_up = False
    for sentence in run_processes(_refusal, config, 4):
        assert '2, 1 batches' in sentence
        assert 'round_up' in sentence
    config.train_dataloader.drop_last = True
    with pytest.raises(SetupError, match='have 0 batches'):
        train(None, config, 10)


# --- BatchNorm -----------------------------------------------------------------


@pytest.mark.parametrize('student', ['resnet', 'mobilenet_v2', 'timm_efficientnet'])
@pytest.mark.parametrize('method', ['tas', 'ofa-rsd'])
def test_sync_bn_reaches_all_that_learns_and_changes_nothing_else(method, student):
    model = distillation(method, student, 'mlp_mixer').train()
    data = batch(model)
    expected = model(*data, mode='loss')
    total(expected).backward()
    wanted = gradients(model)
    model.zero_grad()
    model = convert_sync_batchnorm(model, 'torch').train()
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert layers
    assert all(isinstance(layer, SyncBatchNorm) for layer in layers)
    got = model(*data, mode='loss')
    total(got).backward()
    assert {k: float(v) for k, v in got.items()} == {k: float(v) for k, v in expected.items()}
    assert_close(gradients(model), wanted, 1e-6)


def test_sync_bn_leaves_the_teacher_alone():
    model = convert_sync_batchnorm(distillation('tas', 'vit', 'resnet'), 'torch')
    assert not any(isinstance(m, SyncBatchNorm) for m in model.teacher.modules())


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without a GPU')
def test_sync_bn_without_a_gpu_is_refused(tmp_path):
    config = setup(tmp_path, 'rsd', sync_bn='torch')
    for sentence in run_processes(_refusal, config, 4):
        assert sentence.startswith('sync_bn: BatchNorm over several processes needs GPUs')


def test_statistics_of_batch_norm_are_those_of_all_processes(tmp_path):
    """So that validation and checkpoint do not depend on the process."""
    config = setup(tmp_path, 'rsd')
    (*_, a, _), (*_, b, _) = run_processes(train, config, 4, False)
    name = 'distiller.connectors.decoupler.layers.1.running_mean'
    assert a[name].any()
    assert_close(a, b, 1e-12)


# --- Accumulated gradients -----------------------------------------------------


@pytest.mark.parametrize('method', ['hcd', *(pytest.param(m, marks=SLOW) for m in ('dkd', 'ofa'))])
def test_accumulated_gradients_are_those_of_a_larger_batch(tmp_path, method):
    config = setup(tmp_path, method)
    accumulated = setup(tmp_path, method, {'optim_wrapper.accumulative_counts': 2})
    one, small = train(None, config, 8), train(None, accumulated, 4)
    assert len(small[0]) == 2 * len(one[0])
    assert len(small[1]) == len(one[1])
    assert_same_training([([], *small[1:])], ([], *one[1:]))
    two = run_processes(train, accumulated, 2)
    assert_same_training([([], *process[1:]) for process in two], ([], *one[1:]))
    # between the steps the processes do not wait for each other
    name = 'architecture.head.fc.weight'
    assert not torch.allclose(two[0][3][name], two[1][3][name])


# --- The optimizer's state, shared ---------------------------------------------


def test_a_shared_optimizer_trains_and_resumes_as_a_whole_one(tmp_path):
    """Each of two processes keeps the state of half of the weights; the checkpoint has it all."""
    epochs = {'train_cfg.max_epochs': 2}
    config = setup(tmp_path / 'whole', 'kd', epochs)
    shared = dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', lr=1e-3)
    shared['weight_decay'] = config.optim_wrapper.optimizer.weight_decay
    expected = run_processes(train, config, 4)
    config = setup(tmp_path / 'shared', 'kd', epochs)
    config.optim_wrapper.optimizer = shared
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    got = run_processes(train, config, 4)
    config.work_dir = str(tmp_path / 'resumed')
    config.load_from, config.resume = str(tmp_path / 'shared/epoch_1.pth'), True
    resumed = run_processes(train, config, 4)
    for rank in range(2):
        assert len(resumed[rank][1]) == 5
        for run in (got, resumed):
            assert_close(run[rank][2], expected[rank][2])
    checkpoint = read_checkpoint(tmp_path / 'resumed/epoch_2.pth')
    parameters = len(expected[0][1][0])
    assert len(checkpoint['optimizer']['state']) == parameters


@pytest.mark.parametrize(
    'keys',
    [
        dict(model_wrapper_cfg=dict(type='MMFullyShardedDataParallel')),
        dict(runner_type='FlexibleRunner'),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, keys):
    config = Config.fromfile(TINY)
    config.update(keys)
    config.dump(tmp_path / 'config.py')
    sentence = ends_with(REPO / 'tools/train.py', tmp_path / 'config.py')
    assert 'ZeroRedundancyOptimizer' in sentence


# --- Averaged weights ----------------------------------------------------------


class StopHook(Hook):
    """End a training at the start of an epoch (from 1)."""

    def __init__(self, epoch):
        self.epoch = epoch

    def before_train_epoch(self, runner):
        if runner.epoch + 1 == self.epoch:
            raise InterruptedError


class SampleHook(Hook):
    """Keep the indices of the samples of each epoch."""

    def __init__(self):
        self.samples = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        samples = [int(sample.sample_idx) for sample in data_batch['data_samples']]
        self.samples.setdefault(runner.epoch, []).extend(samples)


def samples(rank, config):
    """Train; return the indices of the samples that this process sees, by epoch."""
    os.environ['LOCAL_RANK'] = '0'
    runner = Runner.from_cfg(config)
    hook = SampleHook()
    runner.register_hook(hook)
    runner.train()
    return hook.samples


def test_processes_with_seeds_of_their_own_share_the_images(tmp_path, tiny_teacher):
    """Also when resumed, they go through one permutation, that of the uninterrupted run."""
    config = setup(tmp_path, 'kd')
    config.model.teacher = Config.fromfile(TINY).model.teacher
    config.model.teacher_ckpt = str(tiny_teacher)
    config.launcher = 'pytorch'
    config.randomness = dict(seed=None, diff_rank_seed=True)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    config.train_cfg.max_epochs = 2
    whole = run_processes(samples, config)
    config.resume, config.load_from = True, str(tmp_path / 'epoch_1.pth')
    resumed = run_processes(samples, config)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours == {1: theirs[1]}
    for epoch in (0, 1):
        assert sorted(whole[0][epoch] + whole[1][epoch]) == list(range(40))


@pytest.mark.parametrize('method', ['ofa', 'tas'])
def test_a_distillation_that_stops_trains_the_student_alone(tmp_path, method):
    """The modules of the distiller wait for no gradient then."""
    config = setup(tmp_path, method)
    config.train_cfg.max_epochs = 3
    config.custom_hooks.append(dict(type='mmrazor.StopDistillHook', stop_epoch=1))
    for losses, _, state, _ in run_processes(train, config, 10):
        before, after = losses[0], losses[-1]
        assert any(value > 0 for key, value in before.items() if key.startswith('distill.loss'))
        assert after['loss'] == after['student.loss']
        assert all(value.isfinite().all() for value in state.values())


def averaged(folder, method, student=None):
    """The tiny config with mmengine's EMAHook and validation."""
    base = Config.fromfile(TINY)
    config = setup(folder, method)
    config.train_cfg.max_epochs = 3
    for key in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        config[key] = base[key]
    config.default_hooks.checkpoint = base.default_hooks.checkpoint
    config.custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    if student:
        config.model.architecture = student
    config.dump(folder / 'config.py')
    return config


def run(config, *hooks):
    config.experiment_name = f'{time.time_ns()}'
    runner = Runner.from_cfg(copy.deepcopy(config))
    recorder = Recorder(freeze=False)
    for hook in (recorder, *hooks):
        runner.register_hook(hook, 'HIGHEST')
    runner.train()
    return runner, recorder.weights


@pytest.mark.parametrize(
    'student', [None, dict(type='TimmClassifier', model_name='test_efficientnet', num_classes=10)]
)
def test_averaged_weights(tmp_path, student):
    config = averaged(tmp_path, 'tas', student)
    runner, weights = run(config)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    # the copy has the student and the distiller's modules, and no second teacher
    assert hook.ema_model.module.teacher is runner.model.teacher
    assert hook.ema_model.module.state_dict().keys() == runner.model.state_dict().keys()
    # the average, recomputed; mmengine begins with the weights after the first step
    parameters = dict(runner.model.named_parameters())
    mean = weights[0]
    for step in weights[1:]:
        mean = {key: 0.9 * value + 0.1 * step[key] for key, value in mean.items()}
    mean = {key: value for key, value in mean.items() if key in parameters}
    checkpoint = read_checkpoint(tmp_path / 'epoch_3.pth')
    saved = checkpoint['state_dict']
    assert_close({key: saved[key] for key in mean}, mean, 1e-5)
    raw = {key: checkpoint['ema_state_dict'][f'module.{key}'] for key in mean}
    assert_close(raw, {key: weights[-1][key] for key in mean}, 0)
    assert not any('teacher.' in key for key in (*saved, *checkpoint['ema_state_dict']))

    # what is validated is what is exported and tested
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    exported, result = tmp_path / 'student.pth', tmp_path / 'result.json'
    files = [tmp_path / 'config.py', tmp_path / 'epoch_3.pth']
    call_tool(REPO / 'tools/export_student.py', *files, exported)
    prefix = 'architecture.model.' if student else 'architecture.'
    for key, value in read_checkpoint(exported)['state_dict'].items():
        if prefix + key in mean:
            torch.testing.assert_close(value, mean[prefix + key], atol=1e-5, rtol=1e-5)
    call_tool(REPO / 'tools/test.py', files[0], exported, '--out', result)
    assert mmengine.load(result)['accuracy/top1'] == pytest.approx(accuracy)


def test_averaged_weights_go_on_when_resumed(tmp_path):
    for name in ('whole', 'stopped'):
        (tmp_path / name).mkdir()
    run(averaged(tmp_path / 'whole', 'kd'))
    config = averaged(tmp_path / 'stopped', 'kd')
    with pytest.raises(InterruptedError):
        run(config, StopHook(3))
    config.load_from, config.resume = str(tmp_path / 'stopped/epoch_2.pth'), True
    run(config)
    whole, resumed = (
        read_checkpoint(tmp_path / name / 'epoch_3.pth') for name in ('whole', 'stopped')
    )
    for part in ('state_dict', 'ema_state_dict'):
        assert_close(resumed[part], whole[part], 0)


# --- From the command line -----------------------------------------------------


def write_config(folder, teacher, *hooks):
    """The tiny config with a student that has BatchNorm."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.py').write_text(
        f"_base_ = '{TINY}'\n"
        "custom_imports = dict(imports=['helpers'])\n"
        'model = dict(architecture=dict(_delete_=True, **_base_.model.teacher),\n'
        f"    teacher_ckpt='{teacher}')\n"
        # enough to see a difference in the accuracy
        'train_dataloader = dict(dataset=dict(num_train=200))\n'
        'optim_wrapper = dict(optimizer=dict(lr=1e-2))\n'
        "param_scheduler = dict(type='ConstantLR', factor=1, _delete_=True)\n"
        f'custom_hooks = [*_base_.custom_hooks, {", ".join(map(repr, hooks))}]\n'
    )
    return 'config.py'


def start(tool, *args, cwd, **env):
    """Start one of the shell scripts, in a session of its own."""
    return subprocess.Popen(
        ['bash', str(REPO / 'tools' / tool), *map(str, args)],
        cwd=cwd,
        env=environment(**{key: str(value) for key, value in env.items()}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, ok=True, timeout=120):
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode == 0) == ok, output[-3000:]
    return output


@pytest.fixture(scope='module')
def whole(tmp_path_factory, tiny_teacher):
    """A run of two processes, on two "nodes"; their outputs."""
    folder = tmp_path_factory.mktemp('whole')
    config = write_config(folder, tiny_teacher)
    nodes = dict(cwd=folder, NNODES=2, PORT=free_port())
    processes = [start('dist_train.sh', config, 1, NODE_RANK=rank, **nodes) for rank in (0, 1)]
    return folder, [finish(process) for process in processes]


def test_one_process_writes(whole):
    folder, outputs = whole
    work_dir = folder / 'work_dirs/config'
    assert len(list(work_dir.rglob('*.log'))) == 1
    assert {file.name for file in work_dir.rglob('*.pth')} == {'epoch_2.pth', 'epoch_3.pth'}
    (log,) = [file.read_text() for file in work_dir.rglob('*.log')]
    assert log.count('The teacher, on the validation data') == 1
    assert [output.count('Epoch(train)') for output in outputs] == [39, 0]
    (scalars,) = [file.read_text() for file in work_dir.rglob('scalars.json')]
    assert scalars.count('student.loss') == 39
    assert scalars.count('"accuracy/top1"') == 3
    assert scalars.count('teacher/accuracy/top1') == 1


def test_each_image_is_validated_once(whole):
    """797 images, on two processes; the accuracy is that of the checkpoint on one."""
    folder, _ = whole
    (scalars,) = (folder / 'work_dirs').rglob('scalars.json')
    last = json.loads(scalars.read_text().splitlines()[-1])
    checkpoint, result = folder / 'work_dirs/config/epoch_3.pth', folder / 'result.json'
    call_tool(
        *(REPO / 'tools/test.py', folder / 'config.py', checkpoint, '--out', result),
        *('--work-dir', folder / 'test'),
    )
    assert mmengine.load(result)['accuracy/top1'] == pytest.approx(last['accuracy/top1'], abs=1e-4)


def same_weights(folder, whole):
    got, expected = (
        read_checkpoint(path / 'work_dirs/config/epoch_3.pth') for path in (folder, whole[0])
    )
    for part in ('state_dict', 'optimizer'):
        assert same(got[part], expected[part]), part


@pytest.mark.slow
@pytest.mark.parametrize('nodes', [1, 2])
def test_a_killed_process_ends_the_run_which_resumes(tmp_path, tiny_teacher, whole, nodes):
    def launch(config, *options):
        keys = dict(cwd=tmp_path, NNODES=nodes, PORT=free_port())
        per_node = 2 // nodes
        return [
            start('dist_train.sh', config, per_node, *options, NODE_RANK=node, **keys)
            for node in range(nodes)
        ]

    config = write_config(tmp_path, tiny_teacher, dict(type='KillHook', epoch=2, step=2, rank=1))
    processes = launch(config)
    while not (tmp_path / 'work_dirs/config/epoch_1.pth').exists():
        assert processes[0].poll() is None
        time.sleep(0.1)
    outputs = [finish(process, ok=False, timeout=60) for process in processes]
    assert 'Signal 9 (SIGKILL)' in outputs[-1]
    assert not list(tmp_path.rglob('epoch_[23].pth'))
    for process in launch(write_config(tmp_path, tiny_teacher), '--resume', 'auto'):
        finish(process)
    same_weights(tmp_path, whole)


SRUN = """#!/usr/bin/env bash
# In place of slurm's: runs the tasks on this machine.
while [[ $1 == -* ]]; do
    case $1 in --ntasks=*) export SLURM_NTASKS=${1#*=} ;; esac
    shift
done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODELIST=localhost "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""


@pytest.mark.slow
def test_slurm(tmp_path, tiny_teacher, whole):
    """Of slurm there is only the part that starts tasks and tells them who they are."""
    config = write_config(tmp_path, tiny_teacher)
    for name, script in [('srun', SRUN), ('scontrol', '#!/bin/sh\necho localhost\n')]:
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    path = f'{tmp_path}:{environment()["PATH"]}'
    process = start(
        *('slurm_train.sh', 'partition', 'job', config),
        **dict(cwd=tmp_path, PATH=path, GPUS=2, MASTER_PORT=free_port()),
    )
    output = finish(process)
    assert output.count('Epoch(train)') == 39
    same_weights(tmp_path, whole)
