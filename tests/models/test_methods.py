"""Every method, for every pair."""

import itertools

import pytest
import torch
from helpers import sampled
from mmpretrain.structures import DataSample
from pairs import FAMILIES, batch, distillation, step, total
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import CLASSES

STAGES = ('ofa', 'tas', 'hcd', 'fitnet', 'pat')
VECTORS = ('kd', 'dkd', 'rsd', 'rsd-logits', 'cc', 'rkd', 'crd')  # which know no architecture
METHODS = (*STAGES, *VECTORS)
PAIRS = [
    *itertools.product(STAGES, FAMILIES, FAMILIES),
    *((m, s, FAMILIES[i - 3]) for m in VECTORS for i, s in enumerate(FAMILIES)),
]


def is_quick(index, case):
    """Whether a pair is in the sample: every family on either side of each method on stages."""
    method, student, teacher = case
    i, k = FAMILIES.index(student), METHODS.index(method)
    if method in VECTORS:
        return i % 4 == k % 4
    return teacher == FAMILIES[(3 * i + k) % len(FAMILIES)]


@pytest.mark.parametrize(('method', 'student', 'teacher'), sampled(PAIRS, is_quick))
def test_every_pair_takes_a_step(method, student, teacher, device):
    model = distillation(method, student, teacher).train().to(device)
    frozen = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    losses = step(model, *batch(model))
    assert all(value.isfinite() for value in losses.values())
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize('method', METHODS)
def test_soft_labels_and_mixed_precision(method, device):
    model = distillation(method, 'vit', 'resnet').train().to(device)
    data = batch(model, soft=True)
    with torch.autocast(device.type, torch.bfloat16):
        losses = model(*data, mode='loss')
        total(losses).backward()
    assert all(value.dtype == torch.float32 for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('method', METHODS)
def test_images_that_are_not_square(method, device):
    keys = dict(input_size=(64, 96), teacher_input=dict(size=(96, 64)))
    model = distillation(method, 'resnet', 'convnext', **keys).to(device)
    step(model.train(), *batch(model))


ONE_CHANNEL = [
    (method, *pair, teachers)
    for pair in [('vit', 'resnet'), ('resnet', 'timm_swin')]
    for teachers in (1, 3)
    for method in METHODS
]


@pytest.mark.parametrize(
    ('method', 'student', 'teacher', 'teachers'), sampled(ONE_CHANNEL, lambda i, _: i % 5 == 0)
)
def test_images_of_one_channel(method, student, teacher, teachers):
    """For a teacher that takes three they are repeated."""
    model = distillation(method, student, teacher, channels=(1, teachers)).train()
    images, samples = batch(model)
    losses = step(model, images, samples)
    assert all(value.isfinite() for value in losses.values())
    assert images.shape[1] == 1
    given = model.teacher_inputs(images)
    assert given.shape[1] == teachers
    torch.testing.assert_close(given[:, :1], given[:, -1:])


def statistics(model):
    return [m.num_batches_tracked.item() for m in model.modules() if isinstance(m, _BatchNorm)]


@pytest.mark.parametrize(('student', 'teacher'), [('vit', 'resnet'), ('resnet', 'mobilenet_v2')])
def test_statistics_of_batch_norm(student, teacher):
    """The teacher's never move; the student's do once per step, also in a shared tail."""
    for options in (dict(), {'connectors.assistant.first': 'teacher'}):
        model = distillation('tas', student, teacher, options).train()
        before, own = statistics(model.teacher), statistics(model.student)
        step(model, *batch(model))
        assert statistics(model.teacher) == before
        assert statistics(model.student) == [count + 1 for count in own]


def term(model, data, *names):
    """Return the gradients of single terms."""
    model.zero_grad()
    losses = model(*data, mode='loss')
    sum(losses[f'distill.loss_{name}'] for name in names).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def of(stages, view):
    """Prefixes of the parameters of stages of the student."""
    return tuple(f'architecture.{view.stages[k - 1].module}.' for k in stages)


def test_gradients_when_the_student_gives_the_first_stages():
    model = distillation('tas', 'resnet', 'vit').train()
    data, view = batch(model), model.student.stage_view
    learned = term(model, data, 'ta_logits', 'ta_features')
    assert any(name.startswith(of([3], view)) for name in learned)
    assert any('assistant.projector' in name for name in learned)
    # The last stage and the head belong to the teacher.
    assert not any(name.startswith((*of([4], view), 'architecture.head')) for name in learned)
    # As a detached target the assistant learns nothing from the student.
    learned = term(model, data, 'as_logits', 'as_features')
    assert not any('assistant.projector' in name for name in learned)
    assert any(name.startswith('architecture.head') for name in learned)


def test_gradients_when_the_teacher_gives_the_first_stages():
    model = distillation('tas', 'vit', 'resnet').train()
    data, view = batch(model), model.student.stage_view
    learned = term(model, data, 'ta_logits', 'ta_features')
    assert any(name.startswith('architecture.head') for name in learned)
    assert any(name.startswith(of([4], view)) for name in learned)
    assert any('assistant.projector' in name for name in learned)
    assert not any(name.startswith(of([1, 2, 3], view)) for name in learned)


def test_an_assistant_that_is_not_detached():
    options = {f'distill_losses.loss_as_{k}.detach_target': False for k in ('logits', 'features')}
    model = distillation('tas', 'resnet', 'vit', options).train()
    learned = term(model, batch(model), 'as_logits', 'as_features')
    assert any('assistant.projector' in name for name in learned)


def test_without_learning_from_the_teacher_nothing_else_breaks():
    options = {f'distill_losses.loss_ta_{k}.loss_weight': 0 for k in ('logits', 'features')}
    model = distillation('tas', 'resnet', 'vit', options).train()
    losses = step(model, *batch(model))
    assert losses['distill.loss_ta_logits'] == 0
    assert losses['distill.loss_as_logits'] > 0
    # DDP needs a gradient, be it zero, for every parameter.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_weights_of_the_assistant_are_the_models_own():
    """Nothing is held twice: the assistant adds its projector, and no more."""
    model = distillation('tas', 'vit', 'resnet')
    keys = [k for k in model.state_dict() if k.startswith('distiller.connectors.assistant')]
    assert keys
    assert all('.projector.' in key for key in keys)
    assert not any('teacher.' in key for key in model.state_dict())
    owners = [id(p) for p in model.parameters()]
    assert len(owners) == len(set(owners))


def test_accuracies_are_logged_and_no_losses():
    model = distillation('tas', 'vit', 'resnet')
    _, log = model.parse_losses(model(*batch(model), mode='loss'))
    for name in ('student', 'assistant', 'teacher'):
        assert 0 <= log[f'distill.{name}_acc'] <= 100
    terms = [v for k, v in log.items() if 'loss' in k and k != 'loss']
    torch.testing.assert_close(log['loss'], sum(terms))
    images, samples = batch(model)
    logits = model.teacher(model.teacher_inputs(images)).argmax(1).tolist()
    for sample, label in zip(samples, logits, strict=True):
        sample.set_gt_label(label)
    assert model(images, samples, mode='loss')['distill.teacher_acc'] == 100


MIXTURES = ('ofa-rsd', 'tas-rsd', 'tas-hcd')


@pytest.mark.parametrize('method', MIXTURES)
@pytest.mark.parametrize(('student', 'teacher'), [('resnet', 'vit'), ('vit', 'resnet')])
def test_mixtures(method, student, teacher, device):
    model = distillation(method, student, teacher).train().to(device)
    losses = step(model, *batch(model))
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('stock', ['mmrazor.DKDLoss', 'mmrazor.DISTLoss'])
@pytest.mark.parametrize('method', ['tas', 'ofa', 'hcd', 'rsd'])
def test_mixtures_with_losses_of_mmrazor(method, stock):
    cfg = dict(type=stock)
    mapping = dict(logits_S='student.logits', logits_T='teacher.logits')
    if stock == 'mmrazor.DKDLoss':
        mapping = dict(
            preds_S='student.logits', preds_T='teacher.logits', gt_labels='student.labels'
        )
    options = {'distill_losses.loss_stock': cfg, 'loss_forward_mappings.loss_stock': mapping}
    model = distillation(method, 'vit', 'resnet', options)
    alone = model(*batch(model), mode='loss')['distill.loss_stock']
    assert alone.isfinite()
    assert alone.requires_grad


@pytest.mark.parametrize('method', ['kd', 'rsd'])
def test_images_without_labels(method):
    model = distillation(method, 'resnet', 'vit', calculate_student_loss=False).train()
    images, _ = batch(model)
    losses = step(model, images, [DataSample() for _ in images])
    assert not any(name.startswith('student') for name in losses)
    assert model.student.head.fc.weight.grad is not None or method == 'rsd'


@pytest.mark.parametrize('method', ['hcd', 'ofa', 'tas-hcd'])
def test_a_student_that_has_maps_first_and_then_tokens(method):
    student = dict(
        type='ImageClassifier',
        backbone=dict(
            type='EfficientFormer',
            arch=dict(
                layers=[1, 1, 1, 2],
                embed_dims=[8, 8, 16, 24],
                downsamples=[False, True, True, True],
                vit_num=1,
            ),
        ),
        neck=dict(type='GlobalAveragePooling', dim=1),
        head=dict(type='LinearClsHead', in_channels=24, num_classes=CLASSES),
    )
    model = distillation(method, 'resnet', 'resnet', architecture=student, input_size=224).train()
    assert {stage.layout for stage in model.student.stage_view.stages} == {'NCHW', 'NLC'}
    losses = step(model, *batch(model))
    assert all(value.isfinite() for value in losses.values())
