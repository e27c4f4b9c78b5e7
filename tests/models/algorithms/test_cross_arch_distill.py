import copy
import logging
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import TINY, captured_log, same
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn

from mmkd_tas.checkpoint import read_checkpoint
from mmkd_tas.configs import compose
from mmkd_tas.errors import SetupError


def config(**changes):
    cfg = Config.fromfile(TINY)
    cfg.merge_from_dict(changes)
    return cfg


def build(data_preprocessor=None, **changes):
    cfg = config(**changes)
    return MODELS.build(
        {**cfg.model, 'data_preprocessor': data_preprocessor or cfg.data_preprocessor}
    )


@pytest.fixture
def batch():
    torch.manual_seed(1)
    inputs = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(i) for i in range(8)]
    return {'inputs': inputs, 'data_samples': samples}


def train_step(model, batch, cfg=None):
    wrapper = build_optim_wrapper(model, cfg or config().optim_wrapper)
    logs = model.train_step(copy.deepcopy(batch), wrapper)
    return wrapper, logs


def snapshot(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


VIT_TEACHER = {
    'model.teacher': dict(
        _delete_=True,
        type='TimmClassifier',
        model_name='vit_tiny_patch16_224',
        depth=1,
        img_size=16,
        patch_size=4,
        num_classes=10,
        drop_rate=0.5,
        drop_path_rate=0.5,
    ),
    'model.distiller.teacher_recorders.logits.source': 'model.head',
}


@pytest.mark.parametrize('teacher', [{}, VIT_TEACHER], ids=['cnn', 'vit'])
def test_teacher_is_frozen_and_wholly_in_eval_mode(batch, teacher):
    model = build(**teacher)
    assert not any(module.training for module in model.teacher.modules())
    model.teacher.train()
    model.train()
    assert model.architecture.training
    assert not any(module.training for module in model.teacher.modules())
    before = snapshot(model.teacher)
    student = snapshot(model.architecture)
    wrapper, _ = train_step(model, batch)
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert any(not torch.equal(v, student[k]) for k, v in model.architecture.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    optimized = {id(p) for group in wrapper.param_groups for p in group['params']}
    assert optimized == {id(p) for p in model.architecture.parameters()}
    assert optimized.isdisjoint(map(id, model.teacher.parameters()))
    assert not any('teacher' in key for key in model.state_dict())


def test_train_returns_the_model():
    model = build()
    assert model.train() is model
    assert model.eval() is model
    assert not model.architecture.training


def test_teacher_runs_once_per_step_without_loss_or_gradients(batch, monkeypatch):
    model = build()
    calls = []
    forward = model.teacher.forward

    def recorded(inputs, data_samples=None, mode='tensor'):
        calls.append((mode, torch.is_grad_enabled()))
        return forward(inputs, data_samples, mode)

    monkeypatch.setattr(model.teacher, 'forward', recorded)
    train_step(model, batch)
    assert calls == [('tensor', False)]


def test_losses_are_the_students_and_the_distillers(batch):
    model = build(**{'model.architecture.train_cfg': None}).eval()  # no dropout, no mixup
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    z_s = model.architecture(data['inputs'])
    z_t = model.teacher(data['inputs'])
    labels = torch.arange(8)
    torch.testing.assert_close(losses['student.loss'], F.cross_entropy(z_s, labels))
    p_t = (z_t / 2).softmax(1)
    kd = 4 * (p_t * (p_t.log() - (z_s / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(losses['distill.loss_kd'], kd)
    assert losses.keys() == {'student.loss', 'distill.loss_kd'}


@pytest.mark.parametrize(
    'loss',
    [
        dict(type='mmrazor.KLDivergence', tau=4),
        dict(type='mmrazor.DISTLoss', tau=2),
        dict(type='mmrazor.DKDLoss', tau=4),
    ],
    ids=lambda loss: loss['type'],
)
def test_stock_distillers_work(batch, loss):
    changes = {'model.distiller.distill_losses.loss_kd': dict(_delete_=True, **loss)}
    if 'DKD' in loss['type']:
        changes['model.distiller.student_recorders.labels'] = dict(
            type='mmrazor.ModuleInputs', source='head.loss_module'
        )
        mapping = dict(recorder='labels', from_student=True, data_idx=1)
        changes['model.distiller.loss_forward_mappings.loss_kd.gt_labels'] = mapping
        changes['model.architecture.train_cfg'] = None
    elif 'DIST' in loss['type']:
        logits = dict(recorder='logits', from_student=True)
        changes['model.distiller.loss_forward_mappings.loss_kd'] = dict(
            _delete_=True, logits_S=logits, logits_T=dict(recorder='logits', from_student=False)
        )
    model = build(**changes)
    loss = model(**model.data_preprocessor(batch, True), mode='loss')['distill.loss_kd']
    loss.backward()
    assert loss > 0
    assert all(p.grad is not None and p.grad.any() for p in model.architecture.head.parameters())
    assert model.architecture.backbone.layers[0].attn.qkv.weight.grad.any()


def test_stopped_distillation_leaves_the_teacher_alone(batch, monkeypatch):
    model = build()
    model.distillation_stopped = True
    monkeypatch.setattr(model.teacher, 'forward', None)
    _, logs = train_step(model, batch)
    assert not any(key.startswith('distill') for key in logs)


def test_mixup_of_the_student_config_counts(batch):
    model = build()
    data = model.data_preprocessor(batch, True)
    assert all('gt_score' in sample for sample in data['data_samples'])


# --- teacher input --------------------------------------------------------------


@pytest.mark.parametrize('size', [None, 32, (24, 20), 8])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear', 'nearest', 'area'])
def test_teacher_input(batch, size, interpolation):
    mean, std = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
    cfg = dict(size=size, mean=mean, std=std, interpolation=interpolation)
    model = build(**{'model.teacher_input': cfg})
    data = model.data_preprocessor(batch, False)
    pixels = batch['inputs'].float()
    if size is not None:
        smooth = interpolation in ('bicubic', 'bilinear')
        pixels = F.interpolate(pixels, size, mode=interpolation, antialias=smooth)
    expected = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(model.teacher_inputs(data['inputs']), expected, atol=1e-4, rtol=1e-4)


def test_teacher_with_a_normalisation_of_its_own(batch):
    own = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    model = build(**{'model.teacher.data_preprocessor': own})
    inputs = model.data_preprocessor(batch, False)['inputs']
    expected = model.teacher.data_preprocessor({'inputs': batch['inputs']})['inputs']
    torch.testing.assert_close(model.teacher_inputs(inputs), expected, atol=1e-4, rtol=1e-4)
    # what the config says comes first
    model = build(
        **{
            'model.teacher.data_preprocessor': own,
            'model.teacher_input': dict(mean=[0.0] * 3, std=[255.0] * 3),
        }
    )
    pixels = batch['inputs'].float() / 255
    torch.testing.assert_close(model.teacher_inputs(inputs), pixels, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ('key', 'given', 'instead'),
    [
        (
            'model.teacher_input',
            dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            r'mean=\[123.675, 116.28, 103.53\], std=\[58.395, 57.12, 57.375\]',
        ),
        ('model.teacher_input', dict(mean=[0] * 3, std=[1] * 3), r'std=\[255.0, 255.0, 255.0\]'),
        ('model.teacher_input', dict(std=0.5), r'write std=\[127.5\]$'),
        ('model.teacher_input', dict(mean=[0.5] * 3), r'write mean=\[127.5, 127.5, 127.5\]$'),
        ('model.teacher_input', dict(mean=[127.5], std=[0.5]), r'mean=\[127.5\], std=\[127.5\]$'),
        (
            'model.teacher.data_preprocessor',
            dict(mean=[0.5] * 3, std=[0.5] * 3),
            r'write mean=\[127.5, 127.5, 127.5\], std=\[127.5, 127.5, 127.5\]$',
        ),
    ],
)
def test_a_normalisation_of_images_from_0_to_1_is_refused(key, given, instead):
    with pytest.raises(SetupError, match=f'^{key}: .*from 0 to 255; .*{instead}'):
        build(**{key: given})


def test_images_from_0_to_1_have_a_normalisation_of_their_own(batch):
    """Where a pipeline of the user's gives floats in this range, both preprocessors say so."""
    own = dict(mean=[0.5] * 3, std=[0.25] * 3, num_classes=10)
    model = build(own, **{'model.teacher_input': dict(mean=[0.4] * 3, std=[0.2] * 3)})
    pixels = batch['inputs'].float() / 255
    inputs = model.data_preprocessor({**batch, 'inputs': pixels}, False)['inputs']
    torch.testing.assert_close(model.teacher_inputs(inputs), (pixels - 0.4) / 0.2)


def test_teacher_sees_the_same_images_by_default(batch):
    model = build()
    inputs = model.data_preprocessor(batch, False)['inputs']
    assert model.teacher_inputs(inputs) is inputs


def test_teacher_val_step(batch):
    model = build(**{'model.teacher_input': dict(size=32)})
    predictions = model.teacher_val_step(batch)
    inputs = model.teacher_inputs(model.data_preprocessor(batch, False)['inputs'])
    expected = model.teacher(inputs).argmax(1)
    assert [int(p.pred_label) for p in predictions] == expected.tolist()


# --- checkpoints ----------------------------------------------------------------


def test_teacher_checkpoint_is_loaded(tiny_teacher):
    weights = read_checkpoint(tiny_teacher)['state_dict']
    for changes in (
        {'model.teacher_ckpt': str(tiny_teacher)},
        {'model.teacher.pretrained': str(tiny_teacher)},
    ):
        for key, value in build(**changes).teacher.state_dict().items():
            assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize(
    ('changes', 'saying'),
    [
        ({'model.teacher_ckpt': 'none.pth'}, "no checkpoint file at 'none.pth'"),
        ({'model.teacher.head.num_classes': 7}, 'trained for 10 classes'),
        ({'model.teacher.backbone.depth': 34}, 'missing: backbone.layer1.2.conv1.weight'),
        (VIT_TEACHER, 'another architecture'),
    ],
)
def test_teacher_checkpoint_must_fit(tiny_teacher, changes, saying):
    with pytest.raises(SetupError, match=saying):
        build(**{'model.teacher_ckpt': str(tiny_teacher), **changes})


@pytest.mark.parametrize('origin', ['mmpretrain', 'timm', 'own module'])
@pytest.mark.parametrize('classes', [10, 7])
def test_a_student_starts_from_a_checkpoint(tmp_path, origin, classes):
    cfg = config().model.architecture
    if origin == 'mmpretrain':
        source = MODELS.build({**cfg, 'head': {**cfg.head, 'num_classes': classes}})
        head = 'head.fc.'
    else:
        source = timm.create_model('test_resnet', num_classes=classes)
        target = timm.create_model('test_resnet', num_classes=10)
        if origin == 'own module':
            source, target = nn.Sequential(source), nn.Sequential(target)
        cfg = dict(type='mmkd_tas.Classifier', model=target)
        head = 'fc.'
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'student.pth')
    keys = {'architecture': cfg, 'student_ckpt': str(tmp_path / 'student.pth')}
    if origin != 'mmpretrain':
        keys['distiller'] = LOGITS
    with captured_log(logging.INFO) as messages:
        model = MODELS.build({**config().model, **keys})
        model.init_weights()  # as runners do, which shall leave it
    weights, found = source.state_dict(), model.student.state_dict()
    assert weights.keys() == found.keys()
    for key, value in found.items():
        if head in key and classes != 10:
            assert value.shape[0] == 10
            assert value.ndim == 1 or value.any()
        else:
            assert torch.equal(value, weights[key]), key
    told = [message for message in messages if message.startswith('model.student_ckpt: ')]
    assert len(told) == (classes != 10)
    assert not told or 'trained for 7 classes; the head for 10 (' in told[0]


LOGITS = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence')),
    loss_forward_mappings=dict(loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits')),
)


@pytest.mark.parametrize(
    ('changes', 'saying'),
    [
        ({'student_ckpt': 'none.pth'}, "no checkpoint file at 'none.pth'"),
        ({}, '^model.student_ckpt: .* another architecture .* missing: backbone.cls_token'),
    ],
)
def test_a_student_checkpoint_must_fit(tiny_teacher, changes, saying):
    with pytest.raises(SetupError, match=saying):
        MODELS.build({**config().model, 'student_ckpt': str(tiny_teacher), **changes})


def test_a_student_starts_from_a_distillation_with_ema_and_resuming_comes_first(tmp_path):
    ema = [dict(type='EMAHook', momentum=0.5)]

    def run(folder, hooks=(), **changes):
        cfg = config(**changes)
        cfg.merge_from_dict({'work_dir': str(tmp_path / folder), 'train_cfg.max_epochs': 1})
        cfg.custom_hooks = [*cfg.custom_hooks, *hooks]
        return Runner.from_cfg(cfg)

    run('first', ema).train()
    averaged = read_checkpoint(tmp_path / 'first/epoch_1.pth')['state_dict']
    student = {
        key.removeprefix('architecture.'): value
        for key, value in averaged.items()
        if key.startswith('architecture.')
    }
    second = run('second', **{'model.student_ckpt': str(tmp_path / 'first')})
    second._init_model_weights()
    assert same(student, dict(second.model.student.state_dict()))
    second.train()
    ended = read_checkpoint(tmp_path / 'second/epoch_1.pth')['state_dict']
    third = run('second', **{'model.student_ckpt': str(tmp_path / 'first'), 'resume': True})
    third.train()  # which has nothing left to do
    assert same(dict(ended), dict(third.model.state_dict()))


def test_a_forgotten_checkpoint_is_refused():
    with pytest.raises(SetupError, match='^model.teacher_ckpt: the teacher has no weights; give'):
        build(**{'model.random_teacher': False})


@pytest.mark.parametrize('where', ['mmengine', 'a list', 'timm'])
def test_a_teacher_that_loads_weights_itself_needs_no_checkpoint(tmp_path, tiny_teacher, where):
    backbone = dict(type='Pretrained', checkpoint=str(tiny_teacher), prefix='backbone')
    changes = {'model.random_teacher': False}
    if where == 'mmengine':
        changes['model.teacher.backbone.init_cfg'] = backbone
    elif where == 'a list':
        kaiming = dict(type='Kaiming', layer='Conv2d')
        changes['model.teacher.backbone.init_cfg'] = [kaiming, backbone]
    else:
        name, file = 'test_resnet', tmp_path / 'timm.pth'
        torch.save(timm.create_model(name, num_classes=10).state_dict(), file)
        teacher = dict(type='TimmClassifier', model_name=name, num_classes=10)
        changes['model.teacher'] = dict(_delete_=True, **teacher, checkpoint_path=str(file))
        changes['model.distiller.teacher_recorders.logits.source'] = 'model.fc'
    build(**changes)


def test_parameters_are_reported():
    with captured_log(logging.INFO) as messages:
        model = build()
    (report,) = [message for message in messages if message.startswith('Parameters')]
    for part, name in ((model.architecture, 'student'), (model.teacher, 'teacher')):
        assert f'{name} {sum(p.numel() for p in part.parameters()):,}' in report


def test_class_counts_of_student_and_teacher_must_agree():
    with pytest.raises(SetupError, match='loss_kd: preds_S has 10 classes and preds_T 7;'):
        build(**{'model.teacher.head.num_classes': 7})


def test_trainable_teacher_is_refused():
    with pytest.raises(SetupError, match='teacher_trainable'):
        build(**{'model.teacher_trainable': True})


# --- being a module -------------------------------------------------------------


def test_moves_with_its_teacher():
    model = build().to(torch.float64)
    assert next(model.teacher.parameters()).dtype == torch.float64
    assert model.teacher_inputs.scale.dtype == torch.float64


def test_resume_and_copy(batch):
    model, other = build(), build()
    other.load_state_dict(model.state_dict(), strict=True)
    twin = copy.deepcopy(model)
    assert twin.teacher is model.teacher
    assert twin.architecture is not model.architecture
    assert math.isfinite(train_step(twin, batch)[1]['loss'])


def test_a_timm_student_resumes():
    student = dict(_delete_=True, type='TimmClassifier', model_name='resnet18', num_classes=10)
    changes = {
        'model.architecture': student,
        'model.distiller.student_recorders.logits.source': 'model.fc',
    }
    model, other = build(**changes), build(**changes)
    from mmengine.runner.checkpoint import load_state_dict

    load_state_dict(other, model.state_dict(), strict=True)
    for (key, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), key


def test_built_models_are_accepted():
    cfg = config()
    student, teacher = MODELS.build(cfg.model.architecture), MODELS.build(cfg.model.teacher)
    model = MODELS.build({**cfg.model, 'architecture': student, 'teacher': teacher})
    assert model.student is student
    assert model.teacher is teacher
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize('student', ['resnet18-w8', 'vit-w64', 'mixer-w64'])
@pytest.mark.parametrize('method', ['kd', 'tas'])
def test_a_student_begins_as_it_would_alone(student, method):
    """The same weights under the same seed, and the same random numbers afterwards."""
    found = []
    for chosen in ('student', method):
        torch.manual_seed(3)
        cfg = compose('digits', f'resnet18-w16_{student}', chosen)
        cfg.model.update({} if chosen == 'student' else {'random_teacher': True})
        model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})
        found.append(torch.rand(3))
        model.init_weights()
        found.append(snapshot(getattr(model, 'student', model)))
    assert same(*found[::2])
    assert same(*found[1::2])
