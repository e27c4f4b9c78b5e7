"""Students and teachers of every origin, with every kind of head, or without one."""

import pytest
import torch
from helpers import REPO, same
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from pairs import hugging_face
from torch import nn

from mmkd_tas.errors import SetupError

CLASSES = 5
TIMM = dict(type='mmkd_tas.Classifier', model='timm:test_resnet')
TORCHVISION = dict(type='mmkd_tas.Classifier', model='torchvision:shufflenet_v2_x0_5')
HEADLESS = dict(TIMM, num_classes=0)


class OwnNet(nn.Module):
    """Two convolutions, a cosine classifier, and no word about the number of classes."""

    def __init__(self, num_classes=CLASSES):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 12, 2, 2))
        self.weight = nn.Linear(12, num_classes, bias=False)

    def forward(self, images):
        feature = self.body(images).mean((2, 3))
        return 8 * self.weight(nn.functional.normalize(feature))


OWN = dict(type='mmkd_tas.Classifier', model=dict(type=f'{OwnNet.__module__}.OwnNet'))


def of_mmpretrain(head, **keys):
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18, base_channels=8),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=head and dict(type=f'mmpretrain.{head}', in_channels=64, **keys),
    )


def distillation(student, teacher, method='rsd', **keys):
    distiller = Config.fromfile(REPO / f'configs/_base_/methods/{method}.py').distiller
    cfg = dict(
        type='mmkd_tas.CrossArchDistill',
        architecture=student,
        teacher=teacher,
        random_teacher=True,
        input_size=32,
        distiller=distiller,
        data_preprocessor=dict(num_classes=CLASSES),
    )
    return MODELS.build({**cfg, **keys})


def step(model, size=32):
    """Take the losses of a step, and see that all that learns has a gradient."""
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    losses = model.train()(torch.randn(4, 3, size, size), samples, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    assert all(value.isfinite().all() for value in losses.values())
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in without if 'mask_token' not in name}
    return losses


def test_origins(tmp_path):
    vit = hugging_face(tmp_path, 'ViT')
    pairs = [('tas', TIMM, vit), ('ofa', vit, TORCHVISION), ('rsd', TORCHVISION, OWN)]
    for method, student, teacher in [*pairs, ('kd', OWN, vit)]:
        step(distillation(dict(student), dict(teacher), method))


def test_plain_modules():
    """They get the modes of a classifier."""
    net = OwnNet()
    model = distillation(net, dict(type=f'{OwnNet.__module__}.OwnNet'), 'kd')
    assert model.student.model is net
    step(model)
    images = torch.randn(2, 3, 32, 32)
    predicted = model.eval()(images, [DataSample(), DataSample()], mode='predict')
    torch.testing.assert_close(predicted[0].pred_score, net(images).softmax(1)[0])


@pytest.mark.parametrize('method', ['rsd', 'fitnet', 'cc'])
@pytest.mark.parametrize('origin', ['timm', 'torchvision', 'hf', 'mmpretrain'])
def test_teachers_without_a_head(method, origin, tmp_path):
    teacher = {
        'timm': lambda: dict(HEADLESS),
        'torchvision': lambda: dict(TORCHVISION, num_classes=0),
        'hf': lambda: hugging_face(tmp_path, num_classes=0),
        'mmpretrain': lambda: of_mmpretrain(None),
    }[origin]()
    model = distillation(of_mmpretrain('LinearClsHead'), teacher, method)
    losses = step(model)
    assert any(name.startswith('distill.loss') and value > 0 for name, value in losses.items())
    images = torch.randn(2, 3, 32, 32)
    recorder = model.distiller.teacher_recorders
    with recorder:
        model._run_teacher(images, None)
    if method != 'fitnet':
        (pooled,) = (r.get_record_data() for r in recorder.recorders.values())
        assert pooled.shape == (2, model.teacher.stage_view.width)


@pytest.mark.parametrize('method', ['kd', 'ofa', 'tas', 'hcd'])
def test_methods_on_logits_need_a_head(method):
    with pytest.raises(SetupError, match='has no head'):
        distillation(of_mmpretrain('LinearClsHead'), dict(HEADLESS), method)


@pytest.mark.parametrize(
    'teacher', [dict(TIMM, num_classes=7), of_mmpretrain('LinearClsHead', num_classes=7)]
)
def test_classes_are_compared_where_logits_are(teacher):
    student = of_mmpretrain('LinearClsHead')
    for method in ('rsd', 'fitnet'):
        step(distillation(dict(student), dict(teacher), method))
    for method in ('kd', 'ofa', 'tas', 'dkd'):
        with pytest.raises(SetupError, match='has 5 classes and .* 7;|has 7 classes and .* 5;'):
            distillation(dict(student), dict(teacher), method)


def test_classes_of_the_assistant():
    """Its logits are those of the model that gives the last stages."""
    distiller = Config.fromfile(REPO / 'configs/_base_/methods/tas.py').distiller
    for key in ('distill_losses', 'loss_forward_mappings'):
        distiller[key] = dict(loss_as_logits=distiller[key].loss_as_logits)
    distiller.connectors = dict(assistant=distiller.connectors.assistant)
    keys = dict(distiller=distiller, teacher_input=dict(size=32))
    with pytest.raises(SetupError, match='loss_as_logits: .* classes'):
        distillation(of_mmpretrain('LinearClsHead'), dict(TIMM, num_classes=7), **keys)
    distillation(of_mmpretrain('LinearClsHead'), dict(TIMM), **keys)


def test_stock_distillers_compare_logits_too():
    recorder = dict(type='mmrazor.ModuleOutputs', source='head.fc')
    pooled = dict(type='mmrazor.ModuleOutputs', source='neck')
    teacher = of_mmpretrain('LinearClsHead', num_classes=7)

    def distiller(recorder):
        return dict(
            type='mmrazor.ConfigurableDistiller',
            student_recorders=dict(a=recorder),
            teacher_recorders=dict(a=recorder),
            distill_losses=dict(loss_l2=dict(type='mmrazor.L2Loss')),
            loss_forward_mappings=dict(
                loss_l2=dict(
                    s_feature=dict(recorder='a', from_student=True, data_idx=0),
                    t_feature=dict(recorder='a', from_student=False, data_idx=0),
                )
            ),
        )

    student = of_mmpretrain('LinearClsHead')
    distillation(dict(student), dict(teacher), distiller=distiller(pooled))
    with pytest.raises(SetupError, match='loss_l2: s_feature has 5 classes'):
        distillation(dict(student), dict(teacher), distiller=distiller(recorder))


HEADS = {
    'arcface': of_mmpretrain('ArcFaceClsHead'),
    'csra': dict(of_mmpretrain('CSRAClsHead', num_heads=1, lam=0.1), neck=None),
    'multi-label': of_mmpretrain('MultiLabelLinearClsHead'),
    'efficientformer': of_mmpretrain('EfficientFormerClsHead', distillation=False),
    'vig': of_mmpretrain('VigClsHead', hidden_dim=16),
    'stacked': of_mmpretrain('StackedLinearClsHead', mid_channels=[16]),
    'dpn': dict(TIMM, model='timm:dpn48b'),
    'resnetv2': dict(TIMM, model='timm:resnetv2_18'),
    'squeezenet': dict(TIMM, model='torchvision:squeezenet1_1'),
    'googlenet': dict(TIMM, model='torchvision:googlenet', init_weights=False),
}


@pytest.mark.parametrize('head', HEADS)
def test_heads(head):
    """Recorded logits are those of a prediction, and pooled features are vectors."""
    losses = dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4))
    mappings = dict(loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits'))
    distiller = Config.fromfile(REPO / 'configs/_base_/methods/rsd.py').distiller
    distiller.distill_losses.update(losses)
    distiller.loss_forward_mappings.update(mappings)
    keys = dict(distiller=distiller, input_size=64)
    step(distillation(dict(TIMM), dict(HEADS[head]), **keys), 64)
    model = distillation(dict(HEADS[head]), dict(TIMM), **keys)
    step(model, 64)
    images = torch.randn(3, 3, 64, 64)
    samples = [DataSample().set_gt_label(i) for i in range(3)]
    model.eval()
    view = model.student.stage_view
    records = model.distiller.student_recorders.recorders
    with model.distiller.student_recorders:
        model.student(images, samples, mode='loss')
        logits = records['student.logits'].get_record_data()
        pooled = records['student.pooled'].get_record_data()
    with torch.no_grad():
        torch.testing.assert_close(logits, model.student(images))
    assert logits.shape == (3, CLASSES)
    assert pooled.shape == (3, view.width)


def test_a_cache_of_a_teacher_without_a_head(tmp_path):
    cache = dict(path=str(tmp_path / 'cache'), augmentations=1)
    model = distillation(of_mmpretrain('LinearClsHead'), dict(HEADLESS), teacher_cache=cache)
    model.teacher_cache.open(4, {})
    images = torch.randn(4, 3, 32, 32)
    samples = [DataSample().set_gt_label(i) for i in range(4)]
    for slot, sample in enumerate(samples):
        sample.set_field(slot, 'cache_slot', field_type='metainfo')
    model.eval()
    first, again = (model(images, samples, mode='loss') for _ in range(2))
    assert same(first, again)
    known = model.teacher_cache([2], lambda missing: pytest.fail('it is stored'))
    expected = model.teacher(model.teacher_inputs(images[2:3])).half().float()
    torch.testing.assert_close(known['pooled'], expected)
