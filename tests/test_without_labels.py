"""Students that learn features of a teacher without a head, from images without labels."""

import re
from itertools import islice

import numpy as np
import pytest
import timm
import torch
from helpers import REPO, call, captured_log
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from pairs import hugging_face
from PIL import Image
from sklearn.datasets import load_digits

import mmkd_tas
from mmkd_tas.configs import method_config
from mmkd_tas.errors import SetupError
from mmkd_tas.runs import Run

METHODS = ('rsd', 'kd-features', 'rkd', 'cc', 'fitnet')
DINO = dict(img_size=28, embed_dim=48, depth=4, num_heads=2)  # of two heads instead of six
RECIPE = REPO / 'configs/mixing/dinov2.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images without labels, and a few with."""
    root = tmp_path_factory.mktemp('data')
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:28], digits.target, strict=False)):
        place = root / 'unlabelled' if i < 16 else root / 'val' / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat((image * 15).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(pixels).resize((32, 32)).save(place / f'{i}.png')
    return root


def teacher_of(origin, tmp_path):
    if origin == 'hf':
        return hugging_face(tmp_path / 'hf', num_classes=0)
    return dict(type='mmkd_tas.Classifier', model='timm:vit_small_patch14_dinov2', **DINO)


def recipe(folder, tmp_path, method='rsd', origin='timm', **changes):
    """That of DINOv2, with small models and images."""
    config = Config.fromfile(RECIPE)
    teacher = {**teacher_of(origin, tmp_path), 'num_classes': 0, 'pretrained': origin == 'hf'}
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(28, 28))]
    config.model.teacher = teacher
    config.merge_from_dict(
        {
            'model.architecture.model': 'timm:test_resnet',
            'model.random_teacher': True,
            'model.input_size': 28,
            'model.distiller': dict(_delete_=True, **method_config(method)),
            'train_dataloader.dataset.data_root': str(folder),
            'train_dataloader.dataset.pipeline': [*pipeline, dict(type='PackInputs')],
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 0,
            'optim_wrapper': dict(_delete_=True, optimizer=dict(type='AdamW', lr=3e-3)),
            'default_hooks.logger.interval': 1,
            'train_cfg.max_epochs': 8,
            'work_dir': str(tmp_path / 'run'),
            **changes,
        }
    )
    config.param_scheduler = None
    return config


@pytest.mark.parametrize(('method', 'origin'), [('rsd', 'timm'), ('kd-features', 'hf')])
def test_from_a_config(folder, tmp_path, method, origin):
    Runner.from_cfg(recipe(folder, tmp_path, method, origin)).train()
    losses = [*Run.read(tmp_path / 'run').losses.values()]
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


@pytest.mark.parametrize(
    ('method', 'headless'), [(method, i % 2 == 0) for i, method in enumerate(METHODS)]
)
def test_in_a_plain_loop(method, headless):
    """Teacher and student may be bare modules of timm; the student may have a head, or none."""
    teacher = timm.create_model('vit_small_patch14_dinov2', num_classes=0, **DINO)
    student = timm.create_model('test_resnet', num_classes=0 if headless else 10)
    sizes = dict(input_size=32, teacher_input=dict(size=28))
    kd = mmkd_tas.distil(student, teacher, method, calculate_student_loss=False, **sizes)
    optimizer = torch.optim.AdamW(kd.parameters(), 3e-3)
    images, found = torch.randn(8, 3, 32, 32), []
    for _ in range(12):
        losses = kd(images)
        assert all(name.startswith('distill.') for name in losses)
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(total.item())
    assert found[-1] < 0.8 * found[0]


def test_a_bare_model_of_hugging_face(tmp_path):
    teacher = MODELS.build(hugging_face(tmp_path, num_classes=0)).model
    student = timm.create_model('test_resnet', num_classes=0)
    kd = mmkd_tas.distil(student, teacher, 'rsd', input_size=32, calculate_student_loss=False)
    assert kd(torch.randn(4, 3, 32, 32))['distill.loss_rsd'].isfinite()
    with pytest.raises(SetupError, match='has no head, and so no logits'):
        mmkd_tas.distil(student, teacher, 'kd', input_size=32)


def validated(config, folder):
    """Add the images with labels for validation."""
    pipeline = config.train_dataloader.dataset.pipeline
    val = dict(type='CustomDataset', data_root=str(folder), data_prefix='val', pipeline=pipeline)
    config.val_dataloader = dict(config.train_dataloader, dataset=val)
    config.val_evaluator, config.val_cfg = dict(type='Accuracy', topk=(1,)), dict()
    return config


SHORT = {'train_cfg.max_epochs': 1}
HEADS = {'model.architecture.num_classes': 10, 'model.teacher.num_classes': 10}


@pytest.mark.parametrize(
    ('method', 'changes', 'said'),
    [
        ('kd', {}, 'has no head, and so no logits: use a method on features'),
        ('tas', {}, 'has no head, and so no logits: use a method on features'),
        ('dkd', HEADS, 'images without labels, .* by distiller.distill_losses.loss_dkd: give'),
        (
            'rsd',
            {'model.calculate_student_loss': True, 'model.architecture.num_classes': 10},
            'images without labels, which are needed by calculate_student_loss: .*rsd, fitnet',
        ),
        ('rsd', {'model.calculate_student_loss': True}, 'the student has no head .* learns no lab'),
    ],
)
def test_what_does_not_go_without_them(folder, tmp_path, method, changes, said):
    with pytest.raises(SetupError, match=said):
        Runner.from_cfg(recipe(folder, tmp_path, method, **changes)).train()


def test_labels_for_some_of_the_data(folder, tmp_path):
    config = recipe(folder, tmp_path)
    dataset = config.train_dataloader.dataset
    dataset.metainfo = dict(classes=list('0123456789'))
    labelled = dict(dataset, data_prefix='val', with_label=True)
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[labelled, dataset])
    with pytest.raises(SetupError, match='with_label=False in all of them'):
        Runner.from_cfg(config).train()


def test_validated_where_there_are_labels(folder, tmp_path):
    """From the logits of a teacher with a head, on images without labels."""
    config = validated(recipe(folder, tmp_path, 'kd', **HEADS, **SHORT), folder)
    Runner.from_cfg(config).train()
    run = Run.read(tmp_path / 'run')
    assert run.teacher.keys() == {'accuracy/top1'}
    assert run.top1 is not None
    with pytest.raises(SetupError, match='val_dataloader: the student has no head .*--no-valid'):
        Runner.from_cfg(validated(recipe(folder, tmp_path), folder)).train()


@pytest.mark.parametrize('origin', ['timm', pytest.param('hf', marks=pytest.mark.slow)])
def test_the_student_gets_a_head_afterwards(folder, tmp_path, origin):
    student = dict(type='mmkd_tas.Classifier', model='timm:test_resnet', num_classes=0)
    if origin == 'hf':
        student = hugging_face(tmp_path / 'student', num_classes=0)
    changes = {'model.architecture': dict(_delete_=True, **student), **SHORT}
    config = recipe(folder, tmp_path, **changes)
    runner = Runner.from_cfg(config)
    runner.train()
    file = tmp_path / 'student.pth'
    call(REPO / 'tools/export_student.py', tmp_path / 'run', file)
    headed = {**config.model, 'architecture': {**student, 'num_classes': 10}}
    learned = runner.model.student.state_dict()
    for path in (tmp_path / 'run', file):
        with captured_log(level=20) as messages:
            model = MODELS.build({**headed, 'student_ckpt': str(path)})
        weights = model.student.state_dict()
        (said,) = [line for line in messages if 'student_ckpt' in line]
        assert 'it has no head; that of the model (' in said
        inside = {key: next(k for k in weights if k.endswith(key)) for key in learned}
        assert all(torch.equal(learned[key], weights[name]) for key, name in inside.items())
        assert len(weights) == len(learned) + 2
    # and back again: a student that was trained with labels goes on without
    torch.save(model.student.state_dict(), file)
    with captured_log(level=20) as messages:
        again = MODELS.build({**config.model, 'student_ckpt': str(file)})
    left_out = any('model has no head, and that of the file (' in line for line in messages)
    assert left_out or origin == 'hf'  # whose own loader leaves it out
    assert all(torch.equal(learned[k], v) for k, v in again.student.state_dict().items())


def test_the_page(tmp_path, monkeypatch, capsys):
    """Its loop, the probe and the fine-tuning, with small models."""
    monkeypatch.chdir(tmp_path)
    text = (REPO / 'docs/without-labels.md').read_text()
    loop, probe, tuning = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    small = f'num_classes=0, **{DINO}'
    loop = loop.replace('pretrained=True, num_classes=0, img_size=224', small)
    images = [torch.randn(4, 3, 28, 28) for _ in range(4)]
    labelled = [(batch, torch.arange(4) % 2) for batch in images]
    space = dict(unlabelled=islice(images, 2), train=labelled, val=labelled)
    for snippet in (loop.replace('224', '28'), probe, tuning):
        exec(snippet.replace('resnet18', 'test_resnet'), space)
    student, teacher = re.findall(r'([\d.]+) %', capsys.readouterr().out)
    assert float(student) >= 50
    assert float(teacher) >= 50
    assert space['student'].num_classes == 10
