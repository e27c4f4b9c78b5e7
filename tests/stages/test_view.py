import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import mmpretrain
import pytest
import timm
import torch
from mmengine.registry import MODELS
from own_model import OwnClassifier
from torch import nn
from zoo import ZOO, of_channels

import mmkd_tas.stages
from mmkd_tas.errors import SetupError
from mmkd_tas.registry import TASK_UTILS
from mmkd_tas.stages import Stage, describe, view_of
from mmkd_tas.stages.costs import costs_of

PATHS = os.pathsep.join(sys.path)
OWN = ['early', 'middle', dict(module='late.0', prefix=1), dict(module='late.1', prefix=1)]


def test_a_model_of_ones_own_by_its_stages_alone():
    model = OwnClassifier().eval()
    view = describe(model, 16, OWN)
    assert view.stages == (
        Stage('early', 'NCHW', 0, 8, (4, 4)),
        Stage('middle', 'NCHW', 0, 8, (4, 4)),
        Stage('late.0', 'NLC', 1, 8, (4, 4)),
        Stage('late.1', 'NLC', 1, 8, (4, 4)),
    )
    assert (view.width, view.num_classes, view.classifiers) == (8, 10, ('classify',))
    feature = torch.randn(2, 8, 4, 4)
    tokens = torch.cat([model.token.expand(2, -1, -1), feature.flatten(2).transpose(1, 2)], 1)
    expected = model.classify(model.late[1](model.late[0](tokens))[:, 0])
    torch.testing.assert_close(view.tail(2)(feature).logits, expected)


def test_what_is_found_is_what_one_would_declare():
    assert describe(OwnClassifier(), 16).stages == describe(OwnClassifier(), 16, OWN).stages


class Streams(nn.Module):
    """Two features go from part to part, and meet at the end."""

    def __init__(self):
        super().__init__()
        self.one = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(4))
        self.two = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(4))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        one = two = x
        for ours, theirs in zip(self.one, self.two, strict=True):
            one, two = ours(one) + 1, theirs(two) * 2
        return self.fc(torch.cat([one, two], 1).mean((2, 3)))


def test_where_there_are_no_such_points_the_error_says_what_to_do():
    view = describe(Streams(), 32)
    with pytest.raises(SetupError) as error:
        _ = view.stages
    message = str(error.value)
    assert 'the stages of Streams could not be found: no module returns all' in message
    assert (view.num_classes, view.width, view.classifiers) == (5, 8, ('fc',))
    # naming stages works, as far as no tail is asked for
    stages = eval(message[message.index('stages=[') + len('stages=') : message.index('] (') + 1])
    view = describe(Streams(), 32, stages)
    grids = {0: (16, 16), 1: (8, 8), 2: (4, 4), 3: (2, 2)}
    assert [stage.grid for stage in view.stages] == [grids[int(name[-1])] for name in stages]
    assert len({*stages}) == 4
    with pytest.raises(SetupError, match='does not follow from its output alone'):
        view.tail(2)


@pytest.mark.parametrize(
    ('stages', 'saying'),
    [
        (['erly'], "no module 'erly'; did you mean early"),
        (['late'], "'late' is never called itself; name late.0 or late.1"),
        ([dict(module='early', layout='NLC')], r"layout='NLC', prefix=0, .* shape \(8, 4, 4\)"),
        ([dict(module='early', layout='NHWC', channels=8)], 'channels=8'),
        ([dict(module='early', layout='CHW')], "layout='CHW', none of"),
        ([dict(module='early', chanels=8)], r"unknown keys \['chanels'\]"),
        ([dict(module='late.0', prefix=0)], 'prefix=0'),
        ([dict(module='late.0', prefix=3)], 'prefix=3'),
        ([dict(module='late.0', prefix=1, grid=(2, 8, 1))], 'grid='),
        ([dict(module='early', prefix=1)], 'prefix=1'),
        (['classify'], 'declared as'),
    ],
)
def test_wrong_entries(stages, saying):
    with pytest.raises(SetupError, match=saying):
        _ = describe(OwnClassifier(), 16, stages).stages


@pytest.mark.parametrize(
    ('entry', 'stage'),
    [
        ('early.0', Stage('early.0', 'NCHW', 0, 8, (4, 4))),
        ('late.0.linear2', Stage('late.0.linear2', 'NLC', 1, 8, (4, 4))),
        (dict(module='late.0', prefix=2, grid=(3, 5)), Stage('late.0', 'NLC', 2, 8, (3, 5))),
    ],
)
def test_what_is_declared_wins_and_the_rest_is_found(entry, stage):
    assert describe(OwnClassifier(), 16, [entry]).stages == (stage,)


class Unordered(OwnClassifier):
    """Mixes the positions of the early feature, so that none is known after it."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        feature = self.early(inputs)
        mixed = self.middle(torch.fft.fft2(feature).real)
        tokens = torch.cat([mixed, mixed], 3).flatten(2).transpose(1, 2)
        return self.classify(self.late[0](torch.fft.fft(tokens, dim=1).real).mean(1))


def test_where_no_positions_are_known_a_map_is_one_and_tokens_need_a_grid():
    stages = ['middle', dict(module='late.0', grid=(4, 8))]
    assert describe(Unordered(), 16, stages).stages == (
        Stage('middle', 'NCHW', 0, 8, (4, 4)),
        Stage('late.0', 'NLC', 0, 8, (4, 8)),
    )
    with pytest.raises(SetupError, match=r"'late.0' is declared as layout='NLC'.*say.*grid=\(H, W"):
        _ = describe(Unordered(), 16, ['late.0']).stages


def test_stage_numbers():
    view = describe(OwnClassifier(), 16, OWN)
    for number in (0, 5, 'x'):
        with pytest.raises(SetupError, match='stages 1 to 4, and no stage'):
            view.stage(number)
    assert view.stage(4).module == 'late.1'


def test_an_image_size_that_the_model_cannot_take():
    model = MODELS.build(ZOO['timm_vit'].cfg)
    with pytest.raises(SetupError, match=r'fails on images of 40x40 pixels .*model.input_size'):
        _ = describe(model, 40).stages


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('name', ['resnet', 'vit', 'timm_swin', 'timm_efficientnet'])
def test_images_of_any_number_of_channels(name, channels):
    view = describe(MODELS.build(of_channels(name, channels)), ZOO[name].size)
    assert view.channels == channels
    assert len(view.stages) == 4
    feature = torch.randn(3, *view.stages[1].shape)
    assert view.tail(2)(feature).logits.shape == (3, view.num_classes)
    assert costs_of(view)[0].flops > 0


class Patches(nn.Module):
    """Norms and projects flattened patches."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(16 * channels)
        self.classify = nn.Linear(16 * channels, 5)

    def forward(self, images):
        return self.classify(self.norm(nn.functional.unfold(images, 4, stride=4).mT).mean(1))


class Folding(nn.Sequential):
    """Folds 2 x 2 pixels into the channels before its first layer."""

    def __init__(self, channels):
        first = nn.Conv2d(4 * channels, 8, 1)
        super().__init__(nn.PixelUnshuffle(2), first, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.append(nn.Linear(8, 5))


class Functional(nn.Module):
    """Begins with a convolution that is no module."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, channels, 3, 3))
        self.classify = nn.Linear(8, 5)

    def forward(self, images):
        return self.classify(nn.functional.conv2d(images, self.weight).mean((2, 3)))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('kind', [Patches, Folding, Functional])
def test_channels_of_models_that_do_not_begin_with_a_convolution(kind, channels):
    model = kind(channels).train()
    before = torch.random.get_rng_state()
    view = view_of(model)
    assert view.channels == channels
    assert view.num_classes == 5
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_size_a_model_was_built_for_is_the_default():
    assert view_of(MODELS.build(ZOO['vit'].cfg)).input_size == (32, 32)
    assert view_of(MODELS.build(ZOO['timm_vit'].cfg)).input_size == (32, 32)
    assert view_of(MODELS.build(ZOO['resnet'].cfg)).input_size == (224, 224)


class Detector(OwnClassifier):
    def forward(self, inputs):
        return {'boxes': self.early(inputs)}


class Segmenter(OwnClassifier):
    def forward(self, inputs):
        return self.early(inputs)


@pytest.mark.parametrize(
    ('kind', 'saying'),
    [(Detector, 'returns dict'), (Segmenter, 'returns a tensor')],
)
def test_a_model_that_is_no_classifier(kind, saying):
    with pytest.raises(SetupError, match=saying):
        _ = describe(kind(), 16).stages


def test_a_model_without_a_head():
    model = MODELS.build({**ZOO['resnet'].cfg, 'head': None})
    view = describe(model, 64)
    assert [stage.module[-6:] for stage in view.stages] == ['layer1', 'layer2', 'layer3', 'layer4']
    assert (view.num_classes, view.width, view.classifiers) == (0, 64, ())
    with pytest.raises(SetupError, match='has no head, and so no logits'):
        view.source('logits')
    recorder = recorder_of(model, 'pooled')
    with recorder:
        output = model.eval()(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(recorder.get_record_data(), output[-1])


def test_subclasses_resolve_like_their_parents():
    from mmpretrain.models import ResNet

    @MODELS.register_module(force=True)
    class MyResNet(ResNet):
        pass

    cfg = {**ZOO['resnet'].cfg, 'backbone': dict(type='MyResNet', depth=18, base_channels=8)}
    assert len(describe(MODELS.build(cfg), 64).stages) == 4


class Skipping(OwnClassifier):
    """Hands the early feature past the middle."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        early = self.early(inputs)
        return self.classify((early + self.middle(early)).mean((2, 3)))


def test_a_tail_that_needs_more_than_its_stage_is_refused():
    view = describe(Skipping(), 16, ['early', 'middle', 'middle', 'middle'])
    view.tail(1)
    with pytest.raises(SetupError, match="after 'middle' does not follow from its output alone"):
        view.tail(2)


class Embedding(nn.Module):
    """Returns tokens, and where they are in each image."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x):
        x = self.project(x).flatten(2).transpose(1, 2)
        return x, torch.arange(x.shape[1]).expand(len(x), -1)


class Waving(nn.Sequential):
    def forward(self, x, waves):
        return x + super().forward(x * waves)


class Placed(nn.Module):
    """Every block needs a table that grows with the batch and does not depend on the images."""

    def __init__(self):
        super().__init__()
        self.embed, self.waves = Embedding(), nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(Waving(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(4))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x, places = self.embed(x)
        waves = self.waves(places)
        for block in self.blocks:
            x = block(x, waves)
        return self.fc(x.mean(1))


def test_a_tail_has_the_tables_that_its_blocks_need():
    model = Placed()
    view = describe(model, 16)
    assert [stage.module for stage in view.stages] == [f'blocks.{i}' for i in range(4)]
    images = torch.randn(3, 3, 16, 16)
    feature, places = model.embed(images)
    for number, block in enumerate(model.blocks, 1):
        feature = block(feature, model.waves(places))
        torch.testing.assert_close(view.tail(number)(feature).logits, model(images))


def test_a_stage_of_two_features_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    model = OwnClassifier()
    model.early.append(Two())
    model.early.append(nn.Module())
    model.early[-1].forward = lambda pair: pair[0]
    with pytest.raises(SetupError, match='returns 2 tensors'):
        _ = describe(model, 16, ['early.3']).stages


@pytest.mark.parametrize(
    ('cfg', 'saying'),
    [
        (dict(source='stge1'), "source='stge1' is not one of"),
        (dict(source='stage1', layout='NLC'), "layout='NLC' is neither"),
        (dict(source='stage9', input_size=16, stages=OWN), 'no stage 9'),
    ],
)
def test_wrong_recorders(cfg, saying):
    with pytest.raises(SetupError, match=saying):
        TASK_UTILS.build(dict(type='mmkd_tas.StageOutputsRecorder', **cfg)).initialize(
            OwnClassifier()
        )


def recorder_of(model, source, **kwargs):
    recorder = TASK_UTILS.build(dict(type='mmkd_tas.StageOutputsRecorder', source=source, **kwargs))
    recorder.initialize(model)
    return recorder


def test_nothing_is_recorded_outside_the_context_or_by_tails():
    model = OwnClassifier()
    view = describe(model, 16, OWN)
    recorder = recorder_of(model, 'stage4')
    model(torch.randn(1, 3, 16, 16))
    assert recorder.data_buffer == []
    with recorder:
        model(torch.randn(1, 3, 16, 16))
    tail = view.tail(2)
    tail(torch.randn(2, 8, 4, 4))
    assert len(recorder.data_buffer) == 1
    recorder.reset_data_buffer()
    with pytest.raises(SetupError, match="without passing 'stage4'"):
        recorder.get_record_data()
    recorder.remove()
    with recorder:
        model(torch.randn(1, 3, 16, 16))
    assert recorder.data_buffer == []


def test_other_images_than_those_the_model_was_looked_at_with():
    model = OwnClassifier()
    describe(model, 16, OWN)
    with recorder_of(model, 'stage1'), pytest.raises(SetupError, match=r'set model.input_size'):
        model(torch.randn(1, 3, 32, 32))


def test_labels():
    from mmpretrain.structures import DataSample

    model = OwnClassifier()
    images = torch.randn(2, 3, 16, 16)
    recorder = recorder_of(model, 'labels', input_size=16, stages=OWN)
    with recorder:
        model(images, [DataSample().set_gt_label(i) for i in (3, 1)], mode='loss')
    assert recorder.get_record_data().tolist() == [3, 1]
    shares = torch.eye(10)[:2]
    samples = [DataSample().set_gt_label(0).set_gt_score(share) for share in shares]
    with recorder:
        model(images, data_samples=samples, mode='loss')
    torch.testing.assert_close(recorder.get_record_data(), shares)


@pytest.mark.parametrize('layout', ['NCHW', 'NHWC', 'NLC', 'NCL'])
@pytest.mark.parametrize('prefix', [0, 2])
def test_layouts(layout, prefix):
    """Position (row, column) of the map is token row * width + column, prefix first."""
    if prefix and layout in ('NCHW', 'NHWC'):
        pytest.skip('maps have no prefix tokens')
    stage = Stage('x', layout, prefix, 3, (2, 4))
    image = torch.arange(5 * 3 * 2 * 4.0).reshape(5, 3, 2, 4)
    class_tokens = -torch.arange(5 * prefix * 3.0).reshape(5, prefix, 3)
    rows = [image[:, :, row, column] for row in range(2) for column in range(4)]
    tokens = torch.stack(rows, 1)
    feature = stage.from_tokens(tokens, class_tokens)
    assert feature.shape[1:] == stage.shape
    torch.testing.assert_close(stage.to_map(feature), image)
    torch.testing.assert_close(stage.to_tokens(feature), tokens)
    torch.testing.assert_close(stage.prefix_tokens(feature), class_tokens)


class EarlyExit(OwnClassifier):
    """Asks for the numbers of the images, and runs other modules for each answer."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        feature = self.early(inputs)
        if float(inputs[-1].mean()) > self.threshold:
            feature = self.middle(feature)
        return self.classify(feature.mean((2, 3)))


def test_a_forward_that_depends_on_the_numbers():
    model = EarlyExit()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(3, 3, 16, 16, generator=generator)  # as the model is looked at with
    model.threshold = float(example[1:].mean())
    view = describe(model, 16)
    assert (view.num_classes, view.width) == (10, 8)
    with pytest.raises(SetupError, match='depends on the numbers in the images; .*stages='):
        _ = view.stages
    assert describe(model, 16, ['early']).stage(1) == Stage('early', 'NCHW', 0, 8, (4, 4))


def test_no_model_is_known_by_its_name():
    """Neither a library of models nor a class of its is written into the package."""
    libraries = (mmpretrain.models.backbones, timm.models)
    models = {
        name
        for library in libraries
        for name, kind in vars(library).items()
        if isinstance(kind, type)
    }
    models |= {'timm', 'mmpretrain', 'torchvision', 'transformers'}
    assert {'ResNet', 'VisionTransformer', 'SwinTransformer'} <= models
    for path in Path(mmkd_tas.stages.__file__).parent.glob('*.py'):
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                del node.body[0]
        code = ast.unparse(tree)
        assert models.isdisjoint(re.findall(r'\w+', code)), path.name


def test_forked_processes_can_train_after_a_model_was_looked_at():
    """In a process of its own: whether autograd has threads is decided once."""
    code = """
import os, torch
from own_model import OwnClassifier
from mmkd_tas.stages import describe
model = OwnClassifier()
describe(model, 16).stages
model(torch.randn(2, 3, 16, 16)).sum().backward()
child = os.fork()
if child == 0:
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run(
        [sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': PATHS}
    )


class Recurrent(OwnClassifier):
    """Calls a module that has children again and again, with the same shapes."""

    def __init__(self):
        super().__init__()
        self.again = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), nn.Tanh())

    def forward(self, inputs, data_samples=None, mode='tensor'):
        feature = self.early(inputs)
        for _ in range(6):
            feature = self.again(feature)
        return self.classify(self.middle(feature).mean((2, 3)))


def test_a_module_that_is_called_repeatedly():
    model = Recurrent().eval()
    view = describe(model, 16, ['early', 'again', 'middle', 'middle'])
    assert len(view.trace.calls_of['again']) == 6
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        feature = model.early(images)
        torch.testing.assert_close(view.tail(1)(feature).logits, model(images))
        for _ in range(6):
            feature = model.again(feature)
        torch.testing.assert_close(view.tail(2)(feature).logits, model(images))
