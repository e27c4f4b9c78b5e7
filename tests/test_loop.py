"""Distillation in a plain loop."""

import copy
import logging

import pytest
import timm
import torch
from helpers import REPO, captured_log, same
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from pairs import total
from processes import run_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmkd_tas
from mmkd_tas.configs import method_config
from mmkd_tas.errors import SetupError

CLASSES = 10


def resnet():
    return timm.create_model('test_resnet', num_classes=CLASSES)


def vit():
    return timm.create_model('test_vit', img_size=32, num_classes=CLASSES)


def distil(student, teacher, *args, **kwargs):
    keys = dict(input_size=32, teacher_input=dict(size=32))
    return mmkd_tas.distil(student, teacher, *args, **{**keys, **kwargs})


def batch(images=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, 3, 32, 32, generator=generator), torch.arange(images) % CLASSES


def shares():
    return torch.eye(CLASSES)[:4] * 0.7 + 0.03


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


TIMM = [
    dict(type='mmkd_tas.Classifier', model='timm:test_resnet', num_classes=CLASSES),
    dict(type='mmkd_tas.Classifier', model='timm:test_vit', num_classes=CLASSES, img_size=32),
]
MMPRETRAIN = [
    dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            in_channels=32,
            num_classes=CLASSES,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        ),
    ),
    TIMM[1],
]


@pytest.mark.parametrize(
    ('method', 'models', 'soft'),
    [
        ('tas', TIMM, False),
        ('tas', MMPRETRAIN, True),
        ('ofa', TIMM, True),
        ('hcd', TIMM, False),
    ],
)
def test_losses_and_gradients_are_those_of_a_config(method, models, soft):
    """Bit for bit, from the same weights; also the weights after the step."""
    architecture, teacher = models
    whole = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            architecture=architecture,
            teacher=teacher,
            distiller=Config.fromfile(REPO / f'configs/_base_/methods/{method}.py').distiller,
            input_size=32,
            random_teacher=True,
        )
    )
    given = [resnet(), vit()] if models is TIMM else [MODELS.build(cfg) for cfg in models]
    given[1].load_state_dict(whole.teacher.state_dict())
    kd = distil(*given, method)
    assert kd.student is given[0]
    assert kd.teacher is given[1]
    assert same(dict(kd.teacher.state_dict()), dict(whole.teacher.state_dict()))
    kd.algorithm.load_state_dict(whole.state_dict())
    images, labels = batch()
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    if soft:
        labels = shares()
        for sample, share in zip(samples, labels, strict=True):
            sample.set_gt_score(share)
    for model in (kd, whole):
        model.train()
        torch.manual_seed(1)
        losses = whole(images, samples, mode='loss') if model is whole else kd(images, labels)
        total(losses).backward()
        if model is kd:
            found = losses
            sum_of_all = sum(losses.values())
    assert sum_of_all == total(losses)
    assert found.keys() == {name for name in losses if 'loss' in name}
    assert same(found, {name: losses[name] for name in found})
    assert len(gradients(kd)) == len([*kd.parameters()])
    assert same(gradients(kd.algorithm), gradients(whole))
    assert any(gradient.any() for gradient in gradients(kd.student).values())


def test_a_training_step():
    student = resnet()
    kd = distil(student, vit(), 'tas')
    optimizer = torch.optim.SGD(kd.parameters(), 0.1)
    before = copy.deepcopy([*kd.parameters()])
    teacher = copy.deepcopy(kd.teacher.state_dict())
    sum(kd(*batch()).values()).backward()
    optimizer.step()
    assert same(dict(teacher), dict(kd.teacher.state_dict()))
    changed = [(p != old).any() for p, old in zip(kd.parameters(), before, strict=True)]
    assert changed == [p.grad.any() for p in kd.parameters()]
    assert sum(changed) > len(changed) / 2
    resnet().load_state_dict(kd.student.state_dict())
    assert kd.student.state_dict().keys() == student.state_dict().keys()


def test_the_teacher_is_nowhere():
    kd = distil(resnet(), vit().train(), 'tas').train()
    teacher = {id(t) for t in (*kd.teacher.parameters(), *kd.teacher.buffers())}
    assert not teacher & {id(p) for p in kd.parameters()}
    assert not teacher & {id(b) for b in kd.buffers()}
    kept = {t.data_ptr() for t in kd.state_dict().values() if t.numel()}
    assert not kept & {p.data_ptr() for p in kd.teacher.parameters()}
    assert not any(module.training for module in kd.teacher.modules())
    assert all(module.training for module in kd.student.modules())
    kd.double()
    assert {p.dtype for p in kd.teacher.parameters()} == {torch.float64}
    assert copy.deepcopy(kd).teacher is kd.teacher


@pytest.mark.parametrize('student', [resnet, lambda: MODELS.build(MMPRETRAIN[0])])
@pytest.mark.parametrize(
    'criterion',
    [
        nn.CrossEntropyLoss(label_smoothing=0.3),
        lambda logits, labels: nn.functional.multi_margin_loss(logits, labels, margin=0.5),
    ],
    ids=['a module', 'a function'],
)
def test_a_criterion(student, criterion):
    student = student().eval()
    images, labels = batch()
    kd = distil(student, vit(), 'kd', criterion=criterion).eval()
    assert kd.student is student
    for given in (labels, shares())[: 1 + isinstance(criterion, nn.Module)]:
        torch.testing.assert_close(
            kd(images, given)['student.loss'], criterion(student(images), given)
        )


def test_a_method_is_a_name_or_a_dict():
    distiller = method_config('kd')
    (loss,) = distiller['distill_losses'].values()
    loss['loss_weight'] = 2 * loss.get('loss_weight', 1.0)
    kept = copy.deepcopy(distiller)
    models = resnet().eval(), vit()
    one, two = (distil(*models, method).eval()(*batch()) for method in ('kd', distiller))
    assert distiller == kept
    assert one['student.loss'] == two['student.loss']
    torch.testing.assert_close(2 * one['distill.loss_kd'], two['distill.loss_kd'])


def test_without_labels():
    kd = distil(resnet(), vit(), 'rsd', calculate_student_loss=False)
    losses = kd(batch()[0])
    assert losses.keys() == {'distill.loss_rsd'}
    with pytest.raises(SetupError, match='labels are missing'):
        distil(resnet(), vit(), 'rsd')(batch()[0])
    with pytest.raises(SetupError, match='labels are missing'):
        distil(resnet(), vit(), 'dkd', calculate_student_loss=False)(batch()[0])


def test_images_are_known_by_their_indices():
    distiller = method_config('crd')
    distiller['distill_losses']['loss_crd'].update(num_images=50, num_negatives=20)
    kd = distil(resnet(), vit(), distiller)
    indices = torch.tensor([3, 1, 4, 15])
    before = kd.algorithm.distiller.distill_losses['loss_crd'].memory.clone()
    assert kd(*batch(), indices)['distill.loss_crd'].isfinite()
    after = kd.algorithm.distiller.distill_losses['loss_crd'].memory
    assert (before != after).any(2).any(0).nonzero().flatten().tolist() == [1, 3, 4, 15]
    with pytest.raises(SetupError, match=r'kd\(images, labels, indices\)'):
        kd(*batch())


def test_a_teacher_that_was_built_keeps_its_weights():
    """Whether or not somebody called init_weights() of mmengine's modules."""
    student = resnet()
    for cfg in (MMPRETRAIN[0], dict(MMPRETRAIN[0], init_cfg=dict(type='Constant', val=1))):
        teacher = MODELS.build(cfg)
        kept = copy.deepcopy(teacher.state_dict())
        kd = distil(student, teacher, 'kd')
        assert same(dict(kept), dict(kd.teacher.state_dict()))


NORMALISED = dict(mean=[127.5] * 3, std=[63.0] * 3)


def test_the_teacher_sees_the_images_of_the_loop():
    """Nobody says what they were normalised with, whatever the teacher would like."""
    cfg = dict(MMPRETRAIN[0], data_preprocessor=NORMALISED)
    images, _ = batch()
    for teacher in (MODELS.build(cfg), resnet()):
        kd = distil(vit(), teacher, 'kd')
        assert torch.equal(kd.algorithm.teacher_inputs(images), images)


@pytest.mark.parametrize('criterion', [None, nn.functional.cross_entropy])
def test_the_teacher_sees_images_normalised_otherwise_where_it_is_said(criterion):
    images, _ = batch()
    own = dict(mean=[0.5] * 3, std=[0.25] * 3)
    other = dict(mean=[0.4] * 3, std=[0.2] * 3, size=32)
    expected = (images * 0.25 + 0.5 - 0.4) / 0.2
    student = MODELS.build(dict(MMPRETRAIN[0], data_preprocessor=own))
    for kd in (
        distil(resnet(), vit(), 'kd', data_preprocessor=own, teacher_input=other),
        distil(student, vit(), 'kd', criterion=criterion, teacher_input=other),
    ):
        torch.testing.assert_close(kd.algorithm.teacher_inputs(images), expected)
    kd = distil(resnet(), resnet(), 'kd', teacher_input=dict(size=64))
    assert kd.algorithm.teacher_inputs(images).shape[2:] == (64, 64)


class NoLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, images):
        return {'out': self.fc(self.conv(images).mean((2, 3)))}


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        (dict(student=NoLogits()), 'NoLogits: a classifier returns logits .* returns dict'),
        (dict(teacher=NoLogits()), 'NoLogits: a classifier returns logits .* returns dict'),
        (dict(teacher=vit().to('meta')), 'student on cpu, teacher on meta: move'),
        (dict(method='taz'), "method: there is no 'taz'; did you mean 'tas'"),
        (dict(method='attention'), "no 'attention'; there are cc, crd, .*tas"),
        (dict(method=dict(tau=4)), 'method: dict is neither the name'),
        (dict(method=None), 'method: None is neither the name'),
        (dict(student='timm:resnet18'), "student: 'timm:resnet18' is not a module"),
        (dict(criterion='ce'), "criterion: 'ce' cannot be called"),
        (dict(teacher=timm.create_model('test_vit', img_size=32, num_classes=7)), '10 .* 7;'),
        (
            dict(method={**method_config('kd'), 'loss_schedules': dict(loss_kd=dict(warmup=5))}),
            'loss_schedules count the epochs of a runner',
        ),
    ],
)
def test_mistakes_when_it_is_built(changes, said):
    with pytest.raises(SetupError, match=said):
        distil(**{'student': resnet(), 'teacher': vit(), 'method': 'tas', **changes})


@pytest.mark.parametrize(
    ('labels', 'said'),
    [
        (None, 'labels are missing'),
        (torch.arange(3), r'a tensor \(3,\) is neither indices \(N,\) nor shares'),
        (torch.arange(4.0), 'class indices .* are integers'),
        (torch.eye(4, CLASSES).long(), 'are floating-point numbers'),
        ([0, 1, 2, 3], 'labels: list is neither'),
    ],
)
def test_mistakes_in_labels(labels, said):
    with pytest.raises(SetupError, match=f'^labels.*{said}|^{said}'):
        distil(resnet(), vit(), 'kd')(batch()[0], labels)


def test_parts_on_different_devices():
    kd = distil(resnet(), vit(), 'tas')
    images, labels = batch()
    with pytest.raises(SetupError, match='images on meta, student on cpu, teacher on cpu'):
        kd(images.to('meta'), labels)
    kd.teacher.to('meta')
    with pytest.raises(SetupError, match='student on cpu, teacher on meta'):
        kd(images, labels)


def test_the_log_is_short():
    with captured_log(logging.INFO) as messages:
        distil(resnet(), vit(), 'tas')
    assert len(messages) <= 3
    assert any(line.startswith('Parameters: student') for line in messages)


# --- with what else one trains with ------------------------------------------------


def test_mixed_precision():
    torch.manual_seed(1)
    kd = distil(vit(), resnet(), 'tas').train()
    plain = kd(*batch())
    with torch.autocast('cpu', torch.bfloat16):
        reduced = kd(*batch())
    assert all(value.dtype == torch.float32 for value in reduced.values())
    for name, value in plain.items():
        torch.testing.assert_close(reduced[name], value, rtol=0.1, atol=0.1)
    sum(reduced.values()).backward()
    assert all(p.grad.isfinite().all() for p in kd.parameters())


def in_float64(rank, kd, images, labels):
    """Gradients of a share of a batch, averaged over the processes."""
    each = len(images) // 2
    mine = slice(rank * each, (rank + 1) * each)
    parallel = DistributedDataParallel(kd)
    parameters = sum(p.numel() for p in parallel.parameters())
    for _ in range(2):  # a second step would notice parameters without gradients
        kd.zero_grad()
        sum(parallel(images[mine], labels[mine]).values()).backward()
    return parameters, gradients(kd)


@pytest.mark.skipif(torch.cuda.is_available(), reason='the processes are forked')
@pytest.mark.parametrize('method', ['tas', 'rsd'])
def test_data_parallel(method):
    """Two processes have the gradients of one with the whole batch."""
    kd = distil(vit(), resnet(), method).double()
    for module in kd.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    images, labels = batch()
    images = images.double()
    sum(kd(images, labels).values()).backward()
    expected = copy.deepcopy(gradients(kd))
    counted = sum(p.numel() for p in kd.parameters())
    for parameters, found in run_processes(in_float64, kd, images, labels):
        assert parameters == counted
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
