"""What the teacher sees is what it was trained on, by its own record."""

import logging

import pytest
import timm
import torch
import torchvision
from helpers import TINY, captured_log
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from torch.nn.functional import interpolate

from mmkd_tas.configs import compose

KD = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence')),
    loss_forward_mappings=dict(loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits')),
)


def distillation(teacher, data_preprocessor=None, **keys):
    cfg = Config.fromfile(TINY)
    teacher = {'num_classes': 10, **teacher} if 'model' in teacher else teacher
    model = dict(cfg.model, teacher=teacher, **{'distiller': KD, 'random_teacher': True, **keys})
    return MODELS.build({**model, 'data_preprocessor': data_preprocessor or cfg.data_preprocessor})


def classifier(model, **keys):
    return dict(type='mmkd_tas.Classifier', model=model, **keys)


def assert_sees(model, size, mean, std, pixels=255):
    """The teacher's images are the resized ones, normalised by torchvision."""
    images = torch.randint(0, 256, (2, 3, 16, 16)).float() * pixels / 255
    inputs = model.data_preprocessor({'inputs': images})['inputs']
    wide = interpolate(images, size, mode='bicubic', antialias=True) if size != 16 else images
    expected = torchvision.transforms.Normalize(mean, std)(wide / pixels)
    torch.testing.assert_close(model.teacher_inputs(inputs), expected, atol=1e-3, rtol=1e-3)


HALF = [0.5] * 3
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Wrapped(nn.Module):
    """A module of a user's, around one of timm."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.net = timm.create_model('test_vit2', num_classes=num_classes)
        self.num_classes = num_classes

    def forward(self, images):
        return self.net(images)


@pytest.mark.parametrize(
    ('teacher', 'name'),
    [
        (classifier('timm:test_resnet'), 'test_resnet'),
        (classifier('timm:test_efficientnet'), 'test_efficientnet'),
        (dict(type='TimmClassifier', model_name='test_vit2', num_classes=10), 'test_vit2'),
        (classifier(Wrapped()), 'test_vit2'),
    ],
    ids=['half', 'imagenet', 'mmpretrain', 'wrapped'],
)
def test_timm(teacher, name):
    declared = timm.data.resolve_model_data_config(timm.create_model(name))
    with captured_log(logging.INFO) as messages:
        model = distillation(teacher)
    assert_sees(model, declared['input_size'][1:], declared['mean'], declared['std'])
    told = [message for message in messages if message.startswith('teacher sees ')]
    assert len(told) == 1
    assert told[0].startswith('teacher sees 160 px, mean ')
    assert "from timm's record" in told[0]


def test_torchvision():
    model = distillation(classifier('torchvision:squeezenet1_1'))
    assert_sees(model, 224, *IMAGENET)
    assert "(from torchvision's record)" in model.teacher_inputs.report
    with torch.device('meta'):
        from mmkd_tas.origins import build_named

        large, _ = build_named('torchvision:efficientnet_v2_l', num_classes=3)
    record = large.image_record
    assert (record.size, record.mean, record.std) == ((480, 480), [127.5] * 3, [127.5] * 3)


@pytest.fixture
def hf(tmp_path):
    transformers = pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ('processor', 'mean', 'std'),
    [
        (dict(image_mean=HALF, image_std=[0.25] * 3), HALF, [0.25] * 3),
        (dict(do_normalize=False), [0.0] * 3, [1.0] * 3),
        (dict(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3), HALF, HALF),
        (None, None, None),
    ],
    ids=['declared', 'none', 'other units', 'no processor'],
)
def test_hugging_face(hf, processor, mean, std):
    transformers = pytest.importorskip('transformers')
    if processor is None:  # the size is that of the config, and the rest the student's
        model = distillation(classifier(f'hf:{hf}'))
        assert_sees(model, 32, [77.7 / 255] * 3, [94.8 / 255] * 3)
        return
    size = dict(height=32, width=32)
    transformers.ViTImageProcessor(size=size, **processor).save_pretrained(hf)
    model = distillation(classifier(f'hf:{hf}'))
    assert "(from Hugging Face's processor)" in model.teacher_inputs.report
    assert_sees(model, 32, mean, std)


def test_channels_in_the_order_of_a_processor(hf):
    transformers = pytest.importorskip('transformers')
    keys = dict(size=dict(shortest_edge=32), crop_size=dict(height=16, width=16))
    transformers.MobileViTImageProcessor(**keys).save_pretrained(hf)
    model = distillation(classifier(f'hf:{hf}'), teacher_input=dict(size=32))
    images = torch.randint(0, 256, (2, 3, 16, 16)).float()
    inputs = model.data_preprocessor({'inputs': images})['inputs']
    wide = interpolate(images, 32, mode='bicubic', antialias=True)
    torch.testing.assert_close(model.teacher_inputs(inputs), wide.flip(1) / 255)


def test_a_run_says_in_its_checkpoint_what_it_was_trained_on(tmp_path):
    """A model of timm that was trained on other images than timm's."""
    teacher = timm.create_model('test_resnet', num_classes=10)
    config = Config(
        dict(
            model=classifier('timm:test_resnet'),
            data_preprocessor=dict(mean=[10.0, 20.0, 30.0], std=[50.0, 60.0, 70.0], to_rgb=False),
            input_size=48,
            work_dir=None,
        )
    )
    file = tmp_path / 'epoch_1.pth'
    meta = dict(cfg=config.pretty_text)
    torch.save(dict(state_dict=teacher.state_dict(), meta=meta), file)
    model = distillation(classifier('timm:test_resnet'), teacher_ckpt=str(file))
    mean, std = [x / 255 for x in (10, 20, 30)], [x / 255 for x in (50, 60, 70)]
    assert_sees(model, 48, mean, std)
    assert '(from the run that trained it)' in model.teacher_inputs.report
    meta['cfg'] = 'raise SystemExit()  # which is not run\nmodel = f(3)'
    torch.save(dict(state_dict=teacher.state_dict(), meta=meta), file)
    assert_sees(
        distillation(classifier('timm:test_resnet'), teacher_ckpt=str(file)), 160, HALF, HALF
    )


def test_a_folder_of_timm(tmp_path):
    teacher = timm.create_model('test_efficientnet', num_classes=10)
    declared = {**teacher.pretrained_cfg, 'mean': HALF, 'std': HALF, 'input_size': [3, 64, 64]}
    timm.models.save_for_hf(teacher, tmp_path, model_config=dict(pretrained_cfg=declared))
    model = distillation(classifier('timm:test_efficientnet'), teacher_ckpt=str(tmp_path))
    assert_sees(model, 64, HALF, HALF)


def test_what_the_user_says_comes_first():
    given = dict(size=20, mean=[255 * x for x in IMAGENET[0]], std=[255 * x for x in IMAGENET[1]])
    model = distillation(classifier('timm:test_resnet'), teacher_input=given)
    assert_sees(model, 20, *IMAGENET)
    assert '(from model.teacher_input)' in model.teacher_inputs.report
    model = distillation(classifier('timm:test_resnet'), teacher_input=dict(size=20))
    assert_sees(model, 20, HALF, HALF)
    assert 'size from model.teacher_input' in model.teacher_inputs.report
    # what it is built for comes before the library's size
    assert_sees(distillation(classifier('timm:test_vit2', img_size=32)), 32, HALF, HALF)
    assert_sees(distillation(classifier('timm:test_resnet', img_size=32)), 32, HALF, HALF)
    own = dict(data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3))
    model = distillation(classifier('timm:test_resnet', **own))
    assert_sees(model, 160, [100 / 255] * 3, [50 / 255] * 3)


def test_images_of_which_nobody_knows_the_normalisation():
    """A pipeline or loop of the user's has normalised them already."""
    model = distillation(classifier('timm:test_resnet'), data_preprocessor=dict(num_classes=10))
    images = torch.randn(2, 3, 160, 160)
    model.teacher_inputs.size = None
    assert torch.equal(model.teacher_inputs(images), images)
    assert 'mean and std from the student' in model.teacher_inputs.report


def test_images_from_0_to_1():
    own = dict(mean=[0.4] * 3, std=[0.2] * 3)
    model = distillation(classifier('timm:test_resnet'), data_preprocessor=own)
    assert_sees(model, 160, HALF, HALF, pixels=1)


def test_a_teacher_of_one_channel():
    cfg = classifier('timm:test_efficientnet', in_chans=1)
    grey = dict(mean=[100.0], std=[50.0])
    student = classifier('timm:test_resnet', in_chans=1, num_classes=10, img_size=32)
    model = distillation(cfg, data_preprocessor=grey, architecture=student, input_size=32)
    images = torch.randint(0, 256, (2, 1, 160, 160)).float()
    model.teacher_inputs.size = None
    found = model.teacher_inputs(model.data_preprocessor({'inputs': images})['inputs'])
    mean, std = (255 * sum(values) / 3 for values in IMAGENET)
    torch.testing.assert_close(found, (images - mean) / std, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('alone', [True, False])
def test_the_shipped_mixer_sees_the_images_of_its_weights(alone):
    config = compose('cifar100', 'mixer-b16,resnet18', 'teacher' if alone else 'kd')
    if alone:
        found = config.data_preprocessor
        assert (found['num_classes'], found['to_rgb']) == (100, False)
        assert 'data_preprocessor' not in config.model
    else:
        found = config.model.teacher.data_preprocessor
    assert (list(found['mean']), list(found['std'])) == ([127.5] * 3, [127.5] * 3)
