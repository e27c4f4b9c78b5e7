"""The configs of the repository, and the sums of their parts."""

import itertools
import shutil
import zlib

import numpy as np
import pytest
import torch
from helpers import REPO, TINY, ends_with, train
from mmengine import load
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from pairs import distillation
from PIL import Image
from torch import nn

from mmkd_tas.configs import compose, load_config, set_num_classes
from mmkd_tas.errors import SetupError
from mmkd_tas.outputs import num_classes

TRAIN = REPO / 'tools/train.py'
PARTS = {
    kind: sorted(file.stem for file in (REPO / 'configs/_base_' / kind).glob(pattern))
    for kind, pattern in (
        ('datasets', '*.py'),
        ('models', '*/*.py'),
        ('methods', '*.py'),
        ('recipes', '*.py'),
    )
}
# The forms of a method for some data sets stand in for it there.
PARTS['methods'] = [name for name in PARTS['methods'] if '_' not in name]
# The classes of this one are those of a user's folder: tests/test_folder.py
PARTS['datasets'].remove('folder')
LEAVES = sorted(
    file for file in (REPO / 'configs').glob('*/*.py') if file.parts[-2] not in ('_base_', 'mixing')
)


def built(config):
    """Build the model as the runner does."""
    return MODELS.build({**config.model, 'data_preprocessor': config.data_preprocessor})


# Every teacher with every student; data sets and methods take turns, so that each of them
# meets every model in either role, and one another.
CELLS = [
    (PARTS['datasets'][(i + j + j // 2) % len(PARTS['datasets'])], f'{teacher}_{student}', method)
    for i, teacher in enumerate(PARTS['models'])
    for j, student in enumerate(PARTS['models'])
    for method in [PARTS['methods'][(i + j) % len(PARTS['methods'])]]
]
SAMPLE = {  # of the large ones, every model once
    'vit-s_mobilenetv2',
    'mixer-b16_swin-p',
    'swin-t_resnet18',
    'resnet50_swin-n',
    'convnext-t_mobilenetv2',
    'swin-p_resmlp-s12',
    'resnet34_deit-t',
    'deit-s_mobilenetv2',
    'vit-b_resnet50-stronger',
}


def is_quick(dataset, pair):
    small = all('-w' in model for model in pair.split('_'))
    small = small and dataset.startswith(('digits', 'cifar100-'))
    return pair in SAMPLE or (small and zlib.crc32(pair.encode()) % 4 == 0)


def test_the_cells_cover_all_pairs_of_parts():
    def seen(*positions):
        parts = [(dataset, *pair.split('_'), method) for dataset, pair, method in CELLS]
        return {tuple(cell[k] for k in positions) for cell in parts}

    models, datasets, methods = (PARTS[kind] for kind in ('models', 'datasets', 'methods'))
    assert seen(1, 2) == {*itertools.product(models, models)}
    for role in (1, 2):
        assert seen(0, role) == {*itertools.product(datasets, models)}
        assert seen(3, role) == {*itertools.product(methods, models)}
    assert seen(0, 3) == {*itertools.product(datasets, methods)}
    quick = {pair for dataset, pair, _ in CELLS if is_quick(dataset, pair)}
    assert {model for pair in quick for model in pair.split('_')} == {*models}


@pytest.mark.parametrize(
    'cell',
    [
        pytest.param(cell, marks=() if is_quick(*cell[:2]) else pytest.mark.slow, id='-'.join(cell))
        for cell in CELLS
    ],
)
def test_a_cell_takes_a_training_and_a_validation_step(cell):
    config = compose(*cell)
    config.model.random_teacher = True
    if cell[2] == 'crd':  # without a runner nobody counts the images
        config.model.distiller.distill_losses.loss_crd.num_images = 50
    if config.input_size < 32 and 'convnext-t' in cell[1]:
        with pytest.raises(SetupError, match='fails on images of 16x16 pixels'):
            built(config)
        return
    model = built(config)
    runner_parts = dict(optimizer=config.optim_wrapper.optimizer, type='OptimWrapper')
    optim_wrapper = build_optim_wrapper(model, runner_parts)
    size, classes = config.input_size, config.data_preprocessor.num_classes
    data = dict(
        inputs=list(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)),
        data_samples=[
            DataSample(metainfo=dict(sample_idx=i)).set_gt_label(label)
            for i, label in enumerate((0, classes - 1))
        ],
    )
    before = [p.clone() for p in model.student.parameters()]
    log = model.train().train_step(data, optim_wrapper)
    assert all(value.isfinite() for value in log.values())
    assert any(
        not torch.equal(a, b) for a, b in zip(before, model.student.parameters(), strict=True)
    )
    for sample in (*model.eval().val_step(data), *model.teacher_val_step(data)):
        assert sample.pred_score.shape == (classes,)
        assert sample.pred_score.sum() == pytest.approx(1, abs=1e-3)
    assert config.filename == '_'.join((cell[2], cell[1], cell[0])) + '.py'


@pytest.mark.parametrize('leaf', LEAVES, ids=lambda file: file.stem)
def test_a_leaf_is_the_sum_that_its_name_says(leaf):
    config = Config.fromfile(leaf)
    method, teacher, student, batch, dataset = leaf.stem.split('_')
    assert leaf.parent.name == method
    gpus, size = batch.split('xb')
    assert int(size) == config.train_dataloader.batch_size
    assert int(gpus) * int(size) == config.auto_scale_lr.base_batch_size
    trained = dataset.replace('digits200', 'digits')
    checkpoints = f'work_dirs/{teacher}_{trained}', f'checkpoints/{teacher}_{trained}.pth'
    assert config.model.pop('teacher_ckpt') in checkpoints
    assert config.to_dict() == compose(dataset, f'{teacher}_{student}', method).to_dict()


class WithScalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize('recipe', PARTS['recipes'])
def test_no_recipe_decays_biases_norms_and_scalars(recipe):
    model = distillation('tas-hcd', 'timm_swin', 'resnet')
    model.distiller.own = WithScalar()
    config = Config.fromfile(REPO / f'configs/_base_/recipes/{recipe}.py')
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    free = {
        name
        for name, parameter in model.named_parameters()
        if decay.pop(id(parameter)) != config.optim_wrapper.optimizer.weight_decay
    }
    assert not decay
    assert free == {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name.endswith('.bias')  # timm's rule
    }
    assert {'distiller.own.temperature', 'distiller.connectors.mapper.inner.bias'} <= free
    assert any(name.endswith('.log_scale') for name in free)


# The pairs of the papers' tables, teacher and student.
CIFAR100 = (
    *itertools.product(('swin-t', 'vit-s', 'mixer-b16'), ('resnet18', 'mobilenetv2')),
    *itertools.product(('convnext-t', 'mixer-b16'), ('deit-t', 'swin-p')),
    *itertools.product(('convnext-t', 'swin-t'), ('resmlp-s12',)),
)
IN1K = (
    *itertools.product(('deit-t', 'swin-t', 'mixer-b16'), ('resnet18', 'mobilenetv2')),
    *itertools.product(('resnet50', 'convnext-t', 'mixer-b16'), ('deit-t', 'swin-n')),
    *itertools.product(('resnet50', 'convnext-t', 'swin-t'), ('resmlp-s12',)),
)


@pytest.mark.parametrize(('dataset', 'pairs'), [('cifar100', CIFAR100), ('in1k', IN1K)])
def test_the_papers_pairs_have_leaves(dataset, pairs):
    named = {tuple(leaf.stem.split('_')[:3]) for leaf in LEAVES if leaf.stem.endswith(dataset)}
    assert {('tas', *pair) for pair in pairs} <= named


def test_either_of_the_two_alone():
    for part, name in (('teacher', 'resnet18-w16'), ('student', 'vit-w64')):
        config = compose('digits', 'resnet18-w16_vit-w64', part)
        assert config.model.backbone == config[name.replace('-', '_')].backbone
        assert config.filename == f'{name}_digits.py'
        assert num_classes(MODELS.build(config.model)) == 10
    assert compose('cifar100', 'swin-t_resnet18', 'teacher').train_cfg.max_epochs == 20
    assert compose('cifar100', 'swin-t_resnet18', 'student').train_cfg.max_epochs == 300


@pytest.mark.parametrize(
    ('cell', 'sentence'),
    [
        (('digit', 'resnet18-w16_vit-w64', 'tas'), "--dataset: there is no 'digit'; give one of"),
        (
            ('digits', 'resnet19_vit-w64', 'tas'),
            "--teacher: there is no model 'resnet19'; .*'resnet18' or .*'timm:resnet18.*'torchv",
        ),
        (('digits', 'vit-w64', 'tas'), "--student: there is no model ''; .* mixer-w64.*TEACHER,ST"),
        (('digits', ',vit-w64', 'teacher'), "--teacher: there is no model ''"),
        (('digits', 'timm:vit_tiny_patch16_224_timm:resnet18', 'kd'), '--pair: write a comma'),
        (('digits', 'timm:resnet19,vit-w64', 'teacher'), "timm has no model 'resnet19'; did you"),
        (
            ('digits', 'resnet18-w16_vit-w64', 'xyz'),
            '--method: .* kd, .* ofa, .* tas, .*teacher, student',
        ),
    ],
)
def test_unknown_parts(cell, sentence):
    with pytest.raises(SetupError, match=sentence):
        compose(*cell)


@pytest.mark.parametrize(
    ('pair', 'method', 'optimizer'),
    [
        ('timm:vit_tiny_patch16_224,timm:test_resnet', 'kd', 'SGD'),
        ('resnet18-w16,timm:vit_tiny_patch16_224', 'dkd', 'AdamW'),
        ('timm:test_resnet,resnet18-w16', 'rsd', 'SGD'),
        (',timm:resmlp_12_224', 'student', 'AdamW'),
        ('torchvision:shufflenet_v2_x0_5,', 'teacher', 'SGD'),
    ],
)
def test_models_of_other_libraries(pair, method, optimizer):
    config = compose('digits200', pair, method)
    assert config.optim_wrapper.optimizer.type == optimizer
    if 'teacher' in config.model:
        config.model.random_teacher = True
    model = built(config).eval()
    images = torch.randn(2, 3, config.input_size, config.input_size)
    for part in (model,) if method in ('student', 'teacher') else (model.student, model.teacher):
        assert part(images).shape == (2, 10)
    assert not set(config.filename) & set(':,/')


def test_both_separators_give_the_same_run():
    underscore, comma = (
        compose('digits', f'resnet18-w16{separator}vit-w64', 'tas') for separator in '_,'
    )
    assert underscore.to_dict() == comma.to_dict()
    assert underscore.filename == comma.filename


def test_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = ['--dataset=digits200', '--pair=resnet18-w16_mixer-w64']
    short = ['--cfg-options', 'train_cfg.max_epochs=11', 'train_dataloader.dataset.num_train=40']
    train(*cell, '--method=teacher', *short, cwd=tmp_path)
    assert (tmp_path / 'work_dirs/resnet18-w16_digits200/epoch_11.pth').is_file()
    teacher = 'model.teacher_ckpt=work_dirs/resnet18-w16_digits200'  # its newest checkpoint
    train(*cell, '--method=tas', *short, teacher, cwd=tmp_path)
    folder = tmp_path / 'work_dirs/tas_resnet18-w16_mixer-w64_digits200'
    # What is dumped is the whole config.
    dumped = Config.fromfile(folder / 'tas_resnet18-w16_mixer-w64_digits200.py')
    assert dumped.model.distiller.connectors.assistant.type == 'mmkd_tas.HybridAssistant'
    assert dumped.train_cfg.max_epochs == 11
    train(dumped.filename, '--work-dir=again', cwd=tmp_path)
    first, again = (
        torch.load(run / 'epoch_11.pth')['state_dict'] for run in (folder, tmp_path / 'again')
    )
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    too_short = ['--cfg-options', 'train_cfg.max_epochs=1']
    assert 'shorten the warm-up' in ends_with(TRAIN, *cell, '--method=student', *too_short)
    both = [*cell, '--teacher=vit-w64', '--method=kd']
    assert 'either --pair, or --teacher' in ends_with(TRAIN, *both)
    for wrong in ([TINY, *cell], cell, [], [TINY, '--student=vit-w64']):
        assert 'either a config file' in ends_with(TRAIN, *wrong)
    teacher = 'model.teacher_ckpt=work_dirs'
    saying = ends_with(TRAIN, *cell, '--method=kd', *short, teacher)
    assert "there is no whole checkpoint in 'work_dirs'" in saying
    alone = ['--student=resnet18', '--method=student']
    saying = ends_with(TRAIN, '--dataset=cifar100', *alone)
    assert "the data set CIFAR100 is missing or incomplete in 'data/cifar100'" in saying
    assert "'data/imagenet" in ends_with(TRAIN, '--dataset=in1k', *alone)


@pytest.fixture(scope='module')
def own_images(tmp_path_factory):
    """Image folders with 5 classes, and one without."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for part in ('mine/train/{}', 'mine/val/{}', 'mine/unlabelled'):
        for label in 'abcde':
            folder = root / part.format(label)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(2):
                image = Image.fromarray(rng.integers(0, 256, (240, 240, 3), dtype=np.uint8))
                image.save(folder / f'{label}{i}.jpg')
    return root


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_image_is_named(own_images, tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(own_images / 'mine', tmp_path / 'data/mine')
    broken = tmp_path / 'data/mine/train/c/c0.jpg'
    broken.write_bytes(broken.read_bytes()[:50])
    config = REPO / 'configs/mixing/image_folder.py'
    options = ['model.teacher_ckpt=None', 'model.random_teacher=True']
    options += [f'train_dataloader.num_workers={workers}']
    options += ['train_dataloader.batch_size=5', 'val_dataloader.num_workers=0']
    saying = ends_with(TRAIN, config, '--cfg-options', *options)
    assert "c/c0.jpg' cannot be read as an image" in saying


MIXING = sorted((REPO / 'configs/mixing').glob('*.py'))


@pytest.mark.parametrize('file', MIXING, ids=lambda file: file.stem)
def test_mixing(file, own_images, tmp_path, monkeypatch):
    """Each example takes a step, on images of its kind."""
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile(file)
    teacher = config.model.teacher
    classes = config.data_preprocessor.num_classes
    set_num_classes(teacher, classes)
    if teacher.pop('pretrained', False):
        teacher.depth = 4
        config.model.random_teacher = True
    else:
        checkpoint = tmp_path / config.model.teacher_ckpt
        checkpoint.parent.mkdir()
        torch.save(MODELS.build(teacher).state_dict(), checkpoint)
    model = built(config).train()
    if config.train_dataloader.dataset.type == 'CustomDataset':
        config.train_dataloader.dataset.data_root = str(own_images / 'mine')
        dataset = DATASETS.build(config.train_dataloader.dataset)
        data = default_collate([dataset[i] for i in range(2)])
    else:
        size = (2, 3, *model.student.stage_view.input_size)
        samples = [DataSample().set_gt_label(i) for i in range(2)]
        data = dict(inputs=torch.randint(0, 256, size, dtype=torch.uint8), data_samples=samples)
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    assert all(value.isfinite() for value in losses.values())


def test_the_index_lists_every_leaf():
    index = load(REPO / 'model-index.yml')
    listed = set()
    for file in index['Import']:
        metafile = load(REPO / file)
        (collection,) = metafile['Collections']
        assert (REPO / collection['README']).is_file()
        for model in metafile['Models']:
            leaf = REPO / model['Config']
            assert model['Name'] == leaf.stem
            assert model['In Collection'] == collection['Name']
            _, teacher, student, _, _ = leaf.stem.split('_')
            assert model['Metadata']['Teacher'] == teacher
            assert model['Metadata']['Student'] == student
            assert leaf.name in (leaf.parent / 'README.md').read_text()
            listed.add(leaf)
    assert listed == set(LEAVES)


def test_a_config_in_pure_python(tmp_path):
    (tmp_path / 'base.py').write_text(
        "student = dict(type='TimmClassifier', model_name='resnet18')\n"
    )
    (tmp_path / 'config.py').write_text(
        'from mmengine.config import read_base\n'
        'from mmkd_tas.models import CrossArchDistill, HybridAssistant, OFALoss, StageDistiller\n'
        'with read_base():\n'
        '    from .base import student\n'
        'data_preprocessor = dict(num_classes=7)\n'
        'model = dict(\n'
        '    type=CrossArchDistill, architecture=student, input_size=64, random_teacher=True,\n'
        "    teacher=dict(type='TimmClassifier', model_name='test_vit', img_size=64),\n"
        '    distiller=dict(\n'
        '        type=StageDistiller,\n'
        '        connectors=dict(assistant=dict(type=HybridAssistant)),\n'
        '        distill_losses=dict(loss_ofa=dict(type=OFALoss)),\n'
        '        loss_forward_mappings=dict(loss_ofa=dict(\n'
        "            preds_S='assistant.logits', preds_T='teacher.logits',\n"
        "            labels='student.labels'))))\n"
    )
    model = built(Config.fromfile(tmp_path / 'config.py'))
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model(torch.randn(2, 3, 64, 64), samples, mode='loss')
    assert losses['distill.loss_ofa'].requires_grad


class Needless(nn.Module):
    """A class that takes no number of classes; its parent would."""

    def __init__(self):
        super().__init__()


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        (dict(head=dict(type='LinearClsHead')), {'head': 7}),
        (dict(head=dict(type='ArcFaceClsHead', in_channels=8)), {'head': 7}),
        (dict(head=dict(type='EfficientFormerClsHead')), {'head': 7}),
        (dict(head=dict(type='LinearClsHead', num_classes=3)), {'head': 3}),
        (dict(head=dict(type='mmpretrain.ClsHead')), {}),
        (dict(head=dict(type='MultiLabelClsHead'), backbone=dict(type='VGG')), {'backbone': 7}),
        (dict(head=None, backbone=dict(type='ResNet')), {}),
        (dict(type='TimmClassifier', model_name='resnet18'), {'': 7}),
        (dict(type='mmkd_tas.Classifier', model='timm:resnet18'), {'': 7}),
        (dict(type='mmkd_tas.Classifier', model='timm:resnet18', num_classes=0), {'': 0}),
        (dict(type='torchvision.models.resnet.ResNet'), {'': 7}),
        (dict(type=Needless), {}),
        (dict(type='no.such.Thing'), {}),
    ],
)
def test_number_of_classes_goes_where_it_is_taken(model, expected):
    model.setdefault('type', 'ImageClassifier')
    set_num_classes(model, 7)
    parts = {'': model, 'head': model.get('head'), 'backbone': model.get('backbone')}
    found = {
        key: part['num_classes'] for key, part in parts.items() if part and 'num_classes' in part
    }
    assert found == expected


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('nopkg::a.py', "there is no package 'nopkg': write mmkd_tas::NAME"),
        (
            'mmpretrain::resnet/resnet18_8xb32_in1.py',
            "mean 'resnet/resnet18_8xb32_in1k.py'",
        ),
        ('mmkd_tas::_base_/methods/taz.py', "did you mean '_base_/methods/tas.py'"),
        ('timm::a.py', 'no configs are installed with timm'),
    ],
)
def test_a_config_that_no_package_has(name, said):
    with pytest.raises(SetupError, match=said):
        load_config(name)
