"""Whole libraries: every model has four stages with true tails, or is named with its reason."""

import ast
import copy
import re
from pathlib import Path

import mmpretrain
import pytest
import timm
import torch
import torchvision
from helpers import REPO
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from timm.models import list_models, model_entrypoint
from zoo import CLASSES, ZOO

from mmkd_tas.errors import SetupError
from mmkd_tas.stages import describe, view_of

TWO = 'no module returns all that the rest of the model is computed from'
ORDER = 'its tokens are not in the order of the image'
WITHOUT = {
    'timm': {
        'crossvit': TWO,
        'efficientvim': TWO,
        'hiera': ORDER,
        'hrnet': TWO,
        'nasnet': TWO,
        'pnasnet': TWO,
        'tnt': TWO,
    },
    'mmpretrain': {'conformer': TWO, 'hrnet': TWO, 'revvit': TWO, 'tnt': TWO},
    'torchvision': {},
}
TORCHVISION = (
    *('alexnet', 'convnext_tiny', 'densenet121', 'efficientnet_b0', 'efficientnet_v2_s'),
    *('googlenet', 'inception_v3', 'maxvit_t', 'mnasnet0_5', 'mobilenet_v2', 'mobilenet_v3_small'),
    *('regnet_x_400mf', 'regnet_y_400mf', 'resnet18', 'resnext50_32x4d', 'wide_resnet50_2'),
    *('shufflenet_v2_x0_5', 'squeezenet1_0', 'squeezenet1_1', 'swin_t', 'swin_v2_t', 'vgg11'),
    *('vgg11_bn', 'vit_b_16'),
)
# One model of each kind that is found in another way, for every run of the tests.
SAMPLE = {
    'timm': ('convit_tiny', 'levit_128s', 'dpn48b', 'hrnet_w18_small', 'hiera_tiny_224'),
    'torchvision': ('squeezenet1_1', 'shufflenet_v2_x0_5'),
}


def smallest_of_each_file() -> list[str]:
    """Names of timm models."""
    names: dict[str, list[tuple[int, str]]] = {}
    for name in list_models():
        with torch.device('meta'):
            try:
                size = sum(p.numel() for p in timm.create_model(name).parameters())
            except (RuntimeError, NotImplementedError):  # asks for numbers
                size = 10**9
        names.setdefault(model_entrypoint(name).__module__, []).append((size, name))
    return [min(models)[1] for models in names.values()]


def family_of(library: str, name: str) -> str:
    if library == 'timm':
        return model_entrypoint(name).__module__.rpartition('.')[2]
    return name


def build(library: str, name: str) -> tuple[torch.nn.Module, int]:
    """Return a model and the size of its images."""
    if library == 'timm':
        model = timm.create_model(name)
        return model, model.pretrained_cfg.get('input_size', (3, 224, 224))[-1]
    if library == 'torchvision':
        init = {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
        model = torchvision.models.get_model(name, weights=None, **init)
        return model, 299 if name == 'inception_v3' else 224
    config = stock_configs()[name]
    config.model.pop('pretrained', None)
    size = 32 if name == 'lenet' else 224
    for step in config.get('test_pipeline') or ():
        scale = step.get('crop_size') if step['type'] == 'CenterCrop' else step.get('scale')
        size = (scale if isinstance(scale, int) else scale[0]) if scale else size
    return MODELS.build(config.model), size


def stock_configs() -> dict[str, Config]:
    """Return a config of each of mmpretrain's families of classifiers, one of a small model."""
    root = Path(mmpretrain.__file__).parent / '.mim/configs'
    small = re.compile(r'tiny|small|nano|atto|pico|mini|b0|[-_](t|s|18|xs|m0|a0|s0|p0|050)[-_]')
    found = {}
    for family in sorted(path for path in root.iterdir() if path.name != '_base_'):
        for file in sorted(
            family.glob('*.py'), key=lambda f: (not small.search(f.name), len(f.name))
        ):
            try:
                config = Config.fromfile(file)
            except RuntimeError:  # of some files mmengine takes the base for a lazy config
                continue
            if config.get('model', {}).get('type') in ('ImageClassifier', 'TimmClassifier'):
                found[family.name] = config
                break
    return found


def look_at(library: str, name: str) -> None:
    model, size = build(library, name)
    view = describe(model, size)
    if reason := WITHOUT[library].get(family_of(library, name)):
        with pytest.raises(SetupError, match=f'could not be found: .*{reason}; .*name the') as told:
            _ = view.stages
        suggested = re.search(r'stages=(\[.*?\])', str(told.value))[1]
        known = dict(view.features())
        assert {*ast.literal_eval(suggested)} <= known.keys()
        if not view.trace.headless:  # methods on logits and pooled features work all the same
            assert view.classifiers
            assert view.logits_module is not None
        return
    assert len(view.stages) == 4
    for number in range(1, 5):
        view.tail(number)  # which compares with the model's own logits


@pytest.mark.parametrize(
    ('library', 'name'), [(library, name) for library in SAMPLE for name in SAMPLE[library]]
)
def test_a_sample(library, name):
    look_at(library, name)


@pytest.mark.slow
@pytest.mark.parametrize('library', ['timm', 'torchvision', 'mmpretrain'])
def test_a_whole_library(library):
    names = {
        'timm': smallest_of_each_file,
        'torchvision': lambda: TORCHVISION,
        'mmpretrain': lambda: list(stock_configs()),
    }[library]()
    wrong = {}
    for name in names:
        try:
            look_at(library, name)
        except (Exception, pytest.fail.Exception) as error:
            wrong[name] = f'{error}'[:300]
    print(f'{library}: {len(names)} models, {len(wrong)} other than said')
    assert wrong == {}


# --- Where several features go from part to part: methods on logits and pooled features ---

CONFORMER = dict(
    type='ImageClassifier',
    backbone=dict(
        type='Conformer',
        arch=dict(embed_dims=48, channel_ratio=1, num_heads=2, depths=12),
        drop_path_rate=0.0,
    ),
    neck=None,
    head=dict(type='ConformerHead', num_classes=CLASSES, in_channels=[256, 48]),
)
METHODS = ('kd', 'dkd', 'dist', 'rsd', 'rsd-logits', 'ofa')  # that take no stage of the teacher
ON_LOGITS = ('kd', 'dkd', 'dist')


def step(method, student, teacher, size):
    """Build a distillation, run one step, and return it with its losses."""
    model = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            architecture=copy.deepcopy(student),
            teacher=copy.deepcopy(teacher),
            distiller=Config.fromfile(REPO / f'configs/_base_/methods/{method}.py').distiller,
            random_teacher=True,
            input_size=size,
            teacher_input=dict(size=size),
        )
    ).train()
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i) for i in range(2)]
    losses = model(torch.randn(2, 3, size, size), samples, mode='loss')
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    return model, losses


def check(method, student, teacher, size):
    model, losses = step(method, student, teacher, size)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None for p in model.student.parameters() if p.requires_grad)
    return model


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_conformer(side):
    pair = (CONFORMER, ZOO['resnet'].cfg)
    model = check('kd', *(pair if side == 'student' else pair[::-1]), 64)
    view = view_of(getattr(model, side))
    assert view.logits_module == 'head'  # which returns two tensors: they are added up
    with pytest.raises(SetupError, match=r'% of the computation come after .* in one piece'):
        _ = view.stages


def config_of(library, name, names):
    """Return the config of a model and the size of its images."""
    if library == 'timm':
        model = dict(type='mmkd_tas.Classifier', model=f'timm:{names[name]}', num_classes=CLASSES)
        return model, 240 if name == 'crossvit' else 224
    config = stock_configs()[name].model
    config.pop('pretrained', None)
    config.pop('train_cfg', None)
    config.head.num_classes = CLASSES
    config.head.loss = dict(type='CrossEntropyLoss')
    return config, 224


@pytest.fixture(scope='module')
def timm_names():
    return {family_of('timm', name): name for name in smallest_of_each_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('library', 'name'), [(library, name) for library in WITHOUT for name in WITHOUT[library]]
)
def test_every_method_without_stages(library, name, timm_names):
    if library == 'timm' and name not in timm_names:
        pytest.skip('not in this timm')
    other, size = config_of(library, name, timm_names)
    for method in METHODS:
        check(method, ZOO['resnet'].cfg, other, size)
    for method in ON_LOGITS:
        check(method, other, ZOO['resnet'].cfg, size)
