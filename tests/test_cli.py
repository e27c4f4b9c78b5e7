"""Whose mistake an error is, and what is said about it."""

import argparse
import importlib.util
import re

import cv2
import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from helpers import REPO, TINY, call, ends_with
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.visualization import UniversalVisualizer

from mmkd_tas import cli
from mmkd_tas.explain import RULES, explain

TRAIN = REPO / 'tools/train.py'
OWN = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS


@HOOKS.register_module(force=True)
class OwnHook(Hook):
    def __init__(self, bias=None, where='step'):
        self.bias, self.where = bias, where
        if where == 'building':
            self.fail()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.where == 'step' and batch_idx == 2:
            self.fail()

    def fail(self):
        {bug}


@HOOKS.register_module(force=True)
class ModestHook(Hook):
    pass


@DATASETS.register_module(force=True)
class OwnDataset(CustomDataset):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a config with a module of the user's own, and go to its folder."""
    monkeypatch.chdir(tmp_path)
    for kind in (MMLogger, UniversalVisualizer):
        kind._instance_dict.clear()  # one of the same second would be taken for the run's

    def own(changes='', bug='pass', **hook):
        module = tmp_path / f'own_{abs(hash(bug))}.py'
        module.write_text(OWN.format(bug=bug))
        monkeypatch.syspath_prepend(tmp_path)
        config = tmp_path / 'config.py'
        config.write_text(
            f"_base_ = '{TINY}'\n"
            f"custom_imports = dict(imports=['{module.stem}'])\n"
            f"custom_hooks = [*_base_.custom_hooks, dict(type='OwnHook', **{hook!r})]\n"
            f'{changes}\n'
        )
        return config

    return own


def log(folder):
    (file,) = folder.glob('work_dirs/config/*/*.log')
    return file.read_text()


@pytest.mark.parametrize('where', ['building', 'step'])
@pytest.mark.parametrize(
    ('bug', 'error'),
    [
        # with a word that is in the config, too
        ('torch.nn.Linear(3, 4, bias_=self.bias, where=1)', TypeError),
        ('torch.nn.Linear(3)', TypeError),
        ("open('missing.txt')", FileNotFoundError),
        ("raise KeyError('x is not in the list')", KeyError),
        ("raise ValueError('end should be larger than begin')", ValueError),
        ('import no_such_package', ImportError),
    ],
)
def test_a_bug_of_the_user_keeps_its_traceback(own, tmp_path, where, bug, error):
    with pytest.raises(error) as told:
        call(TRAIN, own(bug=bug, where=where))
    assert told.traceback[-1].name == 'fail'
    text = log(tmp_path)
    assert 'Traceback (most recent call last)' in text
    assert bug in text


def images(folder):
    for label in range(10):
        (folder / f'{label}').mkdir(parents=True)
        for i in range(4):
            image = np.full((20, 20, 3), 20 * label + i, dtype=np.uint8)
            cv2.imwrite(str(folder / f'{label}/{i}.jpg'), image)


DATA = """
train_dataloader = dict(num_workers={workers}, dataset=dict(_delete_=True, type='{kind}',
    data_root='images', pipeline=[dict(type='LoadImageFromFile', ignore_empty=True),
    dict(type='Resize', scale=16), dict(type='PackInputs')], {more}))
"""


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_went_missing_is_told_and_the_traceback_kept(own, tmp_path, workers):
    images(tmp_path / 'images')
    config = own(
        DATA.format(workers=workers, kind='CustomDataset', more=''),
        bug='import os; os.path.exists(P) and os.remove(P)'.replace('P', "'images/3/1.jpg'"),
    )
    told = ends_with(TRAIN, config, '--cfg-options', 'train_dataloader.batch_size=4')
    assert "images/3/1.jpg': No such file or directory" in told
    assert 'Traceback (most recent call last)' in log(tmp_path)


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        (
            'optim_wrapper = dict(optimizer=dict(lrr=1))',
            "optim_wrapper.optimizer: AdamW takes no argument 'lrr'; did you mean 'lr'?",
        ),
        (
            'model = dict(distiller=dict(distill_loses=dict()))',
            "model.distiller: ConfigurableDistiller takes no argument 'distill_loses'; did you "
            "mean 'distill_losses'",
        ),
        (
            "model = dict(distiller=dict(type='mmkd_tas.StageDistiller', distill_loses=dict()))",
            "model.distiller: StageDistiller takes no argument 'distill_loses'; did you "
            "mean 'distill_losses'",
        ),
        (
            "model = dict(teacher_cache=dict(pathh='x'))",
            "model.teacher_cache: TeacherCache takes no argument 'pathh'; did you mean 'path'",
        ),
        (
            'model = dict(architecture=dict(backbone=dict(img_sise=3)))',
            "model.architecture.backbone: VisionTransformer takes no argument 'img_sise'; did you "
            "mean 'img_size'",
        ),
        (
            'data_preprocessor = dict(meen=3)',
            "data_preprocessor: ClsDataPreprocessor takes no argument 'meen'; did you mean 'mean'",
        ),
        (
            "param_scheduler = dict(_delete_=True, type='MultiStepLR', gamma=0.1)",
            "param_scheduler: MultiStepLR needs the argument 'milestones': add it to its dict",
        ),
        (
            "custom_hooks = [dict(type='ModestHook', often=3)]",
            'custom_hooks.0: ModestHook takes no arguments: leave often out',
        ),
        (
            "custom_hooks = [dict(type='OwnHook', whre=3)]",
            "custom_hooks.0: OwnHook takes no argument 'whre'; did you mean 'where'",
        ),
        # through a constructor of the user that passes it on
        (
            DATA.format(workers=0, kind='OwnDataset', more='tst_mode=True'),
            "train_dataloader.dataset: OwnDataset takes no argument 'tst_mode'; did you mean "
            "'test_mode'",
        ),
    ],
)
def test_an_argument_too_many_or_too_few_is_told_with_its_path(own, changes, told):
    assert told in ends_with(TRAIN, own(changes))


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ('train_dataloader = dict(batch_sise=2)', "train_dataloader: there is no 'batch_sise'; di"),
        ('randomness = dict(sed=3)', "randomness: there is no 'sed'; did you mean 'seed'?"),
        ('train_cfg = dict(max_epoch=3)', "train_cfg: there is no 'max_epoch'; did you mean"),
        ('optim_wrapper = dict(lrr=3)', "optim_wrapper: there is no 'lrr'; there are acc"),
        (
            'optim_wrapper = dict(clip_grad=dict(max_nrom=3))',
            "optim_wrapper.clip_grad: there is no 'max_nrom'; did you mean 'max_norm'",
        ),
        (
            'optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mul=0.0))',
            "optim_wrapper.paramwise_cfg: there is no 'norm_decay_mul'; did you mean 'norm_decay_",
        ),
        (
            'env_cfg = dict(mp_cfg=dict(start_method=3))',
            "env_cfg.mp_cfg: there is no 'start_method'; did you mean 'mp_start_method'",
        ),
    ],
)
def test_an_unknown_key_of_what_no_class_is_built_from(own, changes, told):
    assert told in ends_with(TRAIN, own(changes))


@pytest.mark.parametrize(
    ('launcher', 'variable', 'start'),
    [
        ('pytorch', 'RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set', 'dist_train.sh'),
        ('slurm', 'SLURM_PROCID, SLURM_NTASKS, SLURM_NODELIST are not set', 'slurm_train.sh'),
        ('mpi', 'OMPI_COMM_WORLD_RANK', 'mpirun'),
    ],
)
def test_a_launcher_that_has_started_nothing(own, monkeypatch, launcher, variable, start):
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    told = ends_with(TRAIN, own(), '--launcher', launcher)
    assert f'--launcher {launcher}: it has not started this process, {variable}' in told
    assert start in told


def test_torchrun_without_a_launcher_does_not_train_twice_in_one_folder(own, monkeypatch):
    config = own()
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert 'torchrun has started 2 processes' in ends_with(TRAIN, config)


@pytest.mark.parametrize(
    'visualizer',
    ["'TensorboardVisBackend'", "['TensorboardVisBackend']", '[dict(save_dir=3)]', '7', '[None]'],
)
def test_vis_backends_of_another_form(own, visualizer):
    told = ends_with(TRAIN, own(f'visualizer = dict(vis_backends={visualizer})'))
    assert 'visualizer.vis_backends: ' in told
    assert "is not understood; write a list of dicts with a type, [dict(type='Tens" in told


@pytest.mark.parametrize(
    'hooks', ["dict(type='EMAHook', _delete_=True)", "['EMAHook']", "'EMAHook'"]
)
def test_custom_hooks_of_another_form(own, hooks):
    told = ends_with(TRAIN, own(f'custom_hooks = {hooks}'))
    assert told.startswith('error: custom_hooks: ')
    assert "write a list of dicts with a type, [dict(type='EMAHook')]" in told


@pytest.mark.parametrize(
    ('backend', 'package'),
    [('Tensorboard', 'tensorboard'), ('Wandb', 'wandb'), ('MLflow', 'mlflow'), ('Aim', 'aim')],
)
def test_a_package_of_a_backend_that_is_not_there(own, backend, package):
    if importlib.util.find_spec(package):
        pytest.skip(f'{package} is installed')
    changes = f"visualizer = dict(vis_backends=[dict(type='{backend}VisBackend')])"
    told = ends_with(TRAIN, own(changes))
    assert 'visualizer.vis_backends: one of them needs a package' in told
    assert re.search(f'pip install .*{package}', told)


@pytest.mark.parametrize('batch_size', [1, 39])
def test_a_batch_of_one_image_in_a_batch_norm(own, tmp_path, batch_size):
    """In every step, and at the end of the epoch; with PreflightHook, it is told before."""
    config = own(
        'default_hooks = dict(preflight=None)\n'
        "model = dict(_delete_=True, type='ImageClassifier',\n"
        "    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4,\n"
        "        strides=(1, 4, 4, 4)), neck=dict(type='GlobalAveragePooling'),\n"
        "    head=dict(type='LinearClsHead', in_channels=32, num_classes=10))\n"
        f'train_dataloader = dict(batch_size={batch_size})'
    )
    told = ends_with(TRAIN, config)
    assert 'train_dataloader: a BatchNorm layer takes its statistics over a batch' in told
    assert 'torch.Size([1, ' in told
    assert 'drop_last=True' in told
    assert 'Traceback (most recent call last)' in log(tmp_path)


@pytest.mark.parametrize(
    ('optimizer', 'fused'),
    [
        (dict(type='AdamW', lr=1e-3), True),
        (dict(type='AdamW', lr=1e-3, fused=False), False),
        (dict(type='AdamW', lr=1e-3, foreach=True), None),
        (dict(type='Lamb', lr=1e-3), None),
        (dict(type='LBFGS'), None),
    ],
)
def test_what_torch_has_fused_is_taken(optimizer, fused):
    config = Config(dict(optim_wrapper=dict(optimizer=optimizer)))
    cli.prefer_fused(config)
    assert config.optim_wrapper.optimizer.get('fused') is fused


def test_tf32_is_a_choice(own, monkeypatch):
    assert (
        "float32_matmul_precision: 'tf32' is not one of 'highest', 'high', 'medium'"
        in ends_with(TRAIN, own("env_cfg = dict(float32_matmul_precision='tf32')"))
    )
    args = argparse.Namespace(
        **dict.fromkeys(('config', 'dataset', 'pair', 'method', 'teacher', 'student', 'work_dir')),
        **dict(cfg_options={}, launcher='none', local_rank=0),
    )
    args.config = own("env_cfg = dict(float32_matmul_precision='high')")
    before = torch.get_float32_matmul_precision()
    try:
        cli.load_config(args)
        assert torch.get_float32_matmul_precision() == 'high'
    finally:
        torch.set_float32_matmul_precision(before)


def test_every_rule_about_an_error_names_a_test_that_is_there():
    tests = {
        name
        for file in (REPO / 'tests').rglob('test_*.py')
        for name in re.findall(r'def (test_\w+)', file.read_text())
    }
    for topic, rules in RULES.items():
        for rule in rules:
            assert rule.test in tests, (topic, rule.test)
            assert re.fullmatch(r'[\w ,.]+ \d[\d.]*', rule.source), rule.source


@pytest.mark.parametrize(
    ('call', 'said'),
    [
        (lambda: timm.create_model('resnet18x'), "timm has no model 'resnet18x'; did you mean"),
        (
            lambda: torch.hub.load_state_dict_from_url('http://localhost:1/mmkd_tas.pth'),
            'a download failed .*: put the files in place',
        ),
        (
            lambda: huggingface_hub.hf_hub_download('timm/none', 'none', local_files_only=True),
            'not in the cache, and the hub cannot be reached: .*--teacher-ckpt',
        ),
        (lambda: importlib.import_module('none_such'), "cannot be imported: .*'none_such'"),
    ],
)
def test_what_is_told_while_building(call, said):
    with pytest.raises(Exception) as raised:
        call()
    assert re.search(said, explain(raised.value))
