import copy
from pathlib import Path
from typing import NamedTuple

import mmrazor
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from own_model import OwnClassifier  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import CLASSES, ZOO

from mmkd_tas.errors import SetupError
from mmkd_tas.models import StageConnector
from mmkd_tas.models.utils import count_parameters


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@MODELS.register_module()
class BothStages(StageConnector):
    """Project both stage 3 to one width, and run the teacher's tail."""

    inputs = ('student.stage3', 'teacher.stage3')

    def __init__(self, student, teacher, stages, width=4):
        super().__init__(student, teacher, stages)
        self.stages = stages
        self.projections = nn.ModuleList(nn.Linear(s.channels, width) for s in self.stages)
        self.tail = teacher.tail(3)
        self.calls = 0

    def forward_train(self, *features) -> Pair:
        self.calls += 1
        tokens = [s.to_tokens(f).mean(1) for s, f in zip(self.stages, features, strict=True)]
        first, second = (p(t) for p, t in zip(self.projections, tokens, strict=True))
        return Pair(first, second + self.tail(features[1]).logits.mean())


@MODELS.register_module()
class Half(StageConnector):
    def forward_train(self, feature) -> Tensor:
        return feature / 2


@MODELS.register_module()
class Difference(nn.Module):
    def forward(self, a, b, c=None):
        return F.mse_loss(a, b)


MAPPING = dict(a='both.first', b='both.second')
STOCK_REFERENCE = dict(recorder='x', from_student=True)
DISTILLER = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(both=dict(type='BothStages')),
    distill_losses=dict(
        loss_one=dict(type='Difference'),
        loss_two=dict(type='Difference'),
        loss_kd=dict(type='mmrazor.KLDivergence'),
    ),
    loss_forward_mappings=dict(
        loss_one=MAPPING,
        loss_two=dict(b='both.first', a='both.second'),
        loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits'),
    ),
)


def build(student='vit', teacher='resnet_cifar', **changes):
    distiller = Config(dict(distiller=copy.deepcopy(DISTILLER)))
    distiller.merge_from_dict({f'distiller.{key}': value for key, value in changes.items()})
    return MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            random_teacher=True,
            architecture=copy.deepcopy(ZOO[student].cfg),
            teacher=copy.deepcopy(ZOO[teacher].cfg),
            input_size=32,
            distiller=distiller.distiller,
        )
    )


def data(size=32, classes=CLASSES):
    samples = [DataSample().set_gt_label(i % classes) for i in range(4)]
    return torch.randn(4, 3, size, size), samples


def test_losses_come_from_stages_and_connectors_run_once():
    model = build()
    losses = model(*data(), mode='loss')
    assert losses.keys() == {
        'student.loss',
        *(f'distill.{name}' for name in DISTILLER['distill_losses']),
    }
    torch.testing.assert_close(losses['distill.loss_one'], losses['distill.loss_two'])
    assert model.distiller.connectors['both'].calls == 1
    total = sum(losses.values())
    total.backward()
    connector = model.distiller.connectors['both']
    for parameter in (*connector.parameters(), model.architecture.head.layers.head.weight):
        assert parameter.grad.any()


def test_the_values_are_those_of_the_models():
    model = build().eval()
    images, samples = data()
    student, teacher = model.student.stage_view, model.teacher.stage_view
    seen = {}
    for key, view in (('student', student), ('teacher', teacher)):
        module = view.model.get_submodule(view.stage(3).module)
        module.register_forward_hook(lambda m, a, out, key=key: seen.update({key: out}))
    losses = model(images, samples, mode='loss')
    both = model.distiller.connectors['both']
    first, second = both(seen['student'], seen['teacher'])
    torch.testing.assert_close(losses['distill.loss_one'], F.mse_loss(first, second))
    expected = F.kl_div(
        model.architecture(images).log_softmax(1),
        model.teacher(images).softmax(1),
        reduction='batchmean',
    )
    torch.testing.assert_close(losses['distill.loss_kd'], expected)


def test_stages_reach_losses_as_maps():
    mapping = dict(a='student.stage2', b='halved')
    model = build(
        connectors=dict(halved=dict(type='Half', inputs=['student.stage2'])),
        distill_losses=dict(_delete_=True, loss_x=dict(type='Difference')),
        loss_forward_mappings=dict(_delete_=True, loss_x=mapping),
    )
    stage = model.student.stage_view.stage(2)
    seen = []
    model.distiller.distill_losses['loss_x'].forward = lambda a, b: seen.extend([a, b]) or a.sum()
    model(*data(), mode='loss')
    as_map, halved = seen
    assert as_map.shape == (4, stage.channels, *stage.grid)
    torch.testing.assert_close(stage.to_map(halved) * 2, as_map)


def test_connectors_may_use_connectors():
    model = build(
        **{
            'connectors.halved': dict(type='Half', inputs=['both.first']),
            'loss_forward_mappings.loss_two.b': 'halved',
            'loss_forward_mappings.loss_two.a': 'both.first',
        }
    )
    losses = model(*data(), mode='loss')
    assert losses['distill.loss_two'] > 0
    assert model.distiller.connectors['both'].calls == 1


def test_records_are_dropped_after_the_step():
    model = build()
    model(*data(), mode='loss')
    for recorders in (model.distiller.student_recorders, model.distiller.teacher_recorders):
        assert recorders.recorders
        assert all(recorder.data_buffer == [] for recorder in recorders.recorders.values())
    assert model.distiller._results == {}


def test_borrowed_modules_are_registered_once():
    model = build()
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in model.parameters()})
    assert count_parameters(model.distiller) == count_parameters(
        model.distiller.connectors['both'].projections
    )
    assert set(model.state_dict()) == {
        *(f'architecture.{key}' for key in model.architecture.state_dict()),
        *(f'distiller.{key}' for key in model.distiller.state_dict()),
    }
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1)))
    optimized = [id(p) for group in wrapper.param_groups for p in group['params']]
    assert len(optimized) == len(set(optimized)) == len(names)


def test_a_copy_works_on_its_own_student():
    model = build(connectors=dict(both=dict(type='BothStages')))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.architecture.parameters():
            parameter.zero_()
    images, samples = data()
    logits = model.eval()(images)
    assert not torch.equal(twin.eval()(images), logits)
    loss = twin(images, samples, mode='loss')['distill.loss_kd']
    assert loss.isfinite()
    torch.testing.assert_close(model(images), logits)
    assert copy.deepcopy(twin)(images, samples, mode='loss')['distill.loss_kd'] == loss


def test_a_users_own_model_by_config_alone():
    stages = ['early', 'middle', dict(module='late.0', prefix=1), dict(module='late.1', prefix=1)]
    model = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            random_teacher=True,
            architecture=dict(type='OwnClassifier', num_classes=CLASSES),
            student_stages=stages,
            teacher=copy.deepcopy(ZOO['resnet_cifar'].cfg),
            input_size=16,
            distiller=copy.deepcopy(DISTILLER),
        )
    )
    assert model(*data(16), mode='loss')['distill.loss_one'] > 0


# --- MMRazor's own configs ------------------------------------------------------


@pytest.mark.parametrize('kind', ['mmrazor.ConfigurableDistiller', 'mmkd_tas.StageDistiller'])
def test_stage_recorders_in_mmrazors_way(kind):
    stage4 = dict(type='mmkd_tas.StageOutputs', source='stage4', input_size=32)
    widen = dict(type='mmrazor.ConvModuleConnector', in_channel=24, out_channel=64, kernel_size=1)
    feature = dict(recorder='feat', from_student=True, connector='widen')
    model = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            random_teacher=True,
            architecture=copy.deepcopy(ZOO['vit'].cfg),
            teacher=copy.deepcopy(ZOO['resnet_cifar'].cfg),
            distiller=dict(
                type=kind,
                student_recorders=dict(feat=stage4),
                teacher_recorders=dict(feat=stage4),
                connectors=dict(widen=widen),
                distill_losses=dict(
                    loss_l2=dict(type='mmrazor.L2Loss'), loss_l1=dict(type='mmrazor.L1Loss')
                ),
                loss_forward_mappings=dict(
                    loss_l2=dict(
                        s_feature=feature, t_feature=dict(recorder='feat', from_student=False)
                    ),
                    loss_l1=dict(
                        s_feature=feature, t_feature=dict(recorder='feat', from_student=False)
                    ),
                ),
            ),
        )
    ).eval()
    images, samples = data()
    calls = []
    model.distiller.connectors['widen'].register_forward_hook(lambda *args: calls.append(args[2]))
    losses = model(images, samples, mode='loss')
    with torch.no_grad():
        target = model.teacher.backbone(images)[-1]
    torch.testing.assert_close(losses['distill.loss_l1'], F.l1_loss(calls[0], target))
    assert losses['distill.loss_l2'] > 0
    assert len(calls) == (1 if 'Stage' in kind else 2)


STOCK = Path(mmrazor.__file__).parent / '.mim/configs/distill/mmcls'


@pytest.mark.parametrize(
    'name',
    [
        'kd/kd_logits_resnet34_resnet18_8xb32_in1k.py',
        'kd/kd_logits_resnet50_mobilenet-v2_8xb32_in1k.py',
        'dist/dist_logits_resnet34_resnet18_8xb32_in1k.py',
    ],
)
@pytest.mark.parametrize('kind', [None, 'mmkd_tas.StageDistiller'])
def test_stock_configs_run_unchanged(name, kind):
    config = Config.fromfile(STOCK / name)
    config.model.teacher_ckpt = None  # a download
    if kind:
        config.model._scope_ = 'mmrazor'
        config.model.type = 'mmkd_tas.CrossArchDistill'
        config.model.random_teacher = True
        config.model.distiller.type = kind
    model = MODELS.build(config.model)
    images, samples = data(32, 1000)
    losses = model(images, samples, mode='loss')
    (distill,) = (value for key, value in losses.items() if key.startswith('distill'))
    assert distill.isfinite()
    sum(losses.values()).backward()


# --- mistakes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'saying'),
    [
        ({'loss_forward_mappings.loss_one': dict(_delete_=True, a='both.first')}, "needs 'b' too"),
        ({'loss_forward_mappings.loss_one.d': 'both'}, "Difference has no argument 'd'"),
        ({'loss_forward_mappings.loss_one.a': 'bot.first'}, "connector 'bot'; did you mean 'both'"),
        ({'loss_forward_mappings.loss_one.a': 'both.frst'}, "no 'frst'; did you mean 'first'"),
        ({'loss_forward_mappings.loss_one.a': 'student.stge3'}, "source='stge3' is not one of"),
        ({'loss_forward_mappings.loss_one.a': 'student.stage7'}, 'no stage 7'),
        ({'loss_forward_mappings.loss_one': dict(a=3, b=3)}, 'is not a reference'),
        (
            {'loss_forward_mappings.loss_one': dict(_delete_=True, a=STOCK_REFERENCE, b='both')},
            "student_recorders has no 'x'",
        ),
        ({'loss_forward_mappings.loss_thre': MAPPING}, 'has no such loss'),
        ({'distill_losses.loss_more': dict(type='Difference')}, 'loss_more is missing'),
        (
            {'connectors.student': dict(type='Half')},
            "'student' is not a valid name for a connector",
        ),
        ({'connectors.half': dict(type='Half')}, "'half' is not a valid name for a connector"),
        (
            {
                'connectors.halved': dict(type='Half'),
                'loss_forward_mappings.loss_one.a': 'halved',
            },
            "'halved' has no inputs",
        ),
        (
            {
                'connectors.a': dict(type='Half', inputs=['b']),
                'connectors.b': dict(type='Half', inputs=['a']),
            },
            'need each other',
        ),
    ],
)
def test_mistakes_are_told_when_it_is_built(changes, saying):
    with pytest.raises(SetupError, match=saying):
        build(**changes)
