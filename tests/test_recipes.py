"""The recipes against what the authors of OFA-KD ran: released code, arguments and answers."""

import inspect
import math

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, default_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from mmpretrain.structures import DataSample
from PIL import Image
from timm.data import auto_augment
from timm.loss import BinaryCrossEntropy
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from torchvision import transforms

from mmkd_tas.configs import compose
from mmkd_tas.errors import SetupError

CNN = dict(
    repeats=None,
    bce=False,
    optimizer='SGD',
    momentum=0.9,
    nesterov=True,
    warmup_epochs=3,
    warmup_lr=1e-4,
    clip=None,
    mixup=None,
    cutmix=None,
    erase=None,
    rand_augment=None,
    smoothing=0.1,
    ema=None,
    crop=0.875,
    drop_path=0.0,
)
TOKEN = dict(
    repeats=None,
    bce=False,
    optimizer='AdamW',
    lr=5e-4,
    weight_decay=0.05,
    epochs=300,
    batch=1024,
    warmup_epochs=20,
    warmup_lr=5e-7,
    clip=5.0,
    mixup=0.8,
    cutmix=1.0,
    erase=0.25,
    rand_augment=(2, 9, 0.5),
    smoothing=0.1,
    crop=0.9,
    interpolation='bicubic',
    drop_path=0.0,
)
CIFAR100 = dict(epochs=300, batch=1024, weight_decay=2e-3, min_lr=1e-3)
IN1K = dict(epochs=100, batch=512, weight_decay=1e-4, lr=0.1, steps=30, gamma=1.5, exits=1.0)
RESNET18 = dict(interpolation='bilinear')
MOBILENETV2 = dict(interpolation='bicubic')
RESMLP = dict(crop=0.875)
STRONGER = dict(
    repeats=3,
    bce=True,
    optimizer='Lamb',
    lr=5e-3,
    min_lr=1e-6,
    weight_decay=0.02,
    epochs=300,
    batch=2048,
    warmup_epochs=5,
    warmup_lr=1e-6,
    clip=None,
    mixup=0.1,
    cutmix=1.0,
    erase=None,
    rand_augment=(2, 7, 0.5),
    smoothing=0.0,
    ema=0.9998,
    crop=0.95,
    interpolation='bicubic',
    drop_path=0.05,
    gamma=1.5,
    exits=1.0,
)
OF_CIFAR100 = dict(min_lr=1e-5, ema=None, gamma=1.0, exits=1.0)
OF_IN1K = dict(min_lr=1e-6, ema=0.99996, gamma=1.5, exits=1.0)
AUTHORS = {
    ('cifar100', 'resnet18'): CNN | CIFAR100 | RESNET18 | dict(lr=0.1, gamma=1.0, exits=0.1),
    ('cifar100', 'mobilenetv2'): CNN | CIFAR100 | MOBILENETV2 | dict(lr=0.05, gamma=1.0, exits=0.1),
    ('cifar100', 'deit-t'): TOKEN | OF_CIFAR100,
    # timm's own rate for Swin, which the recipe for CIFAR-100 leaves as it is
    ('cifar100', 'swin-p'): TOKEN | OF_CIFAR100 | dict(drop_path=0.1),
    ('cifar100', 'resmlp-s12'): TOKEN | OF_CIFAR100 | RESMLP,
    ('in1k', 'resnet18'): CNN | IN1K | RESNET18,
    ('in1k', 'mobilenetv2'): CNN | IN1K | MOBILENETV2,
    ('in1k', 'deit-t'): TOKEN | OF_IN1K,
    ('in1k', 'swin-n'): TOKEN | OF_IN1K,
    ('in1k', 'resmlp-s12'): TOKEN | OF_IN1K | RESMLP,
    ('in1k', 'resnet50-stronger'): STRONGER,
}


def found(pipeline, kind):
    """Yield the transforms of a kind, also those of which one is drawn."""
    for transform in pipeline:
        if isinstance(transform, list):
            yield from found(transform, kind)
        elif transform.type == kind:
            yield transform
        elif transform.type == 'RandomChoice':
            yield from found(transform.transforms, kind)


def at_random(pipeline, kind):
    """Return the transform of a kind that is there with either interpolation, else None."""
    pair = [transform.to_dict() for transform in found(pipeline, kind)]
    if not pair:
        return None
    where = [t.get('hparams', t) for t in pair]
    assert [place.pop('interpolation') for place in where] == ['bilinear', 'bicubic']
    assert pair[0] == pair[1]
    return pair[0]


def ours(config):
    """Read from a config what the table of the authors has."""
    wrapper, train = config.optim_wrapper, config.train_dataloader
    warmup, main = config.param_scheduler
    optimizer = wrapper.optimizer
    read = dict(
        optimizer=optimizer.type,
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        clip=wrapper.get('clip_grad', {}).get('max_norm'),
        epochs=config.train_cfg.max_epochs,
        batch=config.auto_scale_lr.base_batch_size,
        warmup_epochs=warmup.end - 1,
        warmup_lr=warmup.start_factor * optimizer.lr,
        ema=None,
    )
    if optimizer.type == 'SGD':
        read.update(momentum=optimizer.momentum, nesterov=optimizer.nesterov)
    if main.type == 'CosineAnnealingLR':
        read['min_lr'] = main.eta_min_ratio * optimizer.lr
    else:
        read['steps'] = main.milestones[0]
        assert main.milestones == [read['steps'] * k for k in (1, 2, 3)]
    assert train.drop_last
    pipeline = train.dataset.pipeline
    crop = at_random(pipeline, 'RandomResizedCrop')
    assert crop == dict(type='RandomResizedCrop', scale=224, backend='pillow')
    rand = at_random(pipeline, 'RandAugment')
    assert not [*found(pipeline, 'RandomErasing'), *found(pipeline, 'ColorJitter')]
    read['rand_augment'] = rand and tuple(
        rand[key] for key in ('num_policies', 'magnitude_level', 'magnitude_std')
    )
    augment = config.data_preprocessor.get('batch_augments', {})
    if isinstance(augment.get('augments'), dict):
        augment = augment.augments
        assert augment.type == 'mmkd_tas.MixThenErase'
    strengths = {a.type: a.alpha for a in augment.get('augments', ())}
    read.update(mixup=strengths.get('Mixup'), cutmix=strengths.get('CutMix'))
    read['erase'] = augment.get('erase_prob')
    for hook in config.custom_hooks:
        if hook.type == 'EMAHook':
            read['ema'] = 1 - hook.momentum
    (resize,) = found(config.val_dataloader.dataset.pipeline, 'ResizeEdge')
    (centre,) = found(config.val_dataloader.dataset.pipeline, 'CenterCrop')
    assert config.test_dataloader == config.val_dataloader
    assert resize.edge == 'short'
    assert centre.crop_size == 224
    read['crop'] = {math.floor(224 / share): share for share in (0.875, 0.9, 0.95)}[resize.scale]
    read['interpolation'] = resize.interpolation
    student = config.model.architecture
    loss = student.loss if 'loss' in student else student.head.loss
    assert (loss.type, loss.mode) == ('LabelSmoothLoss', 'original')
    read.update(smoothing=loss.label_smooth_val, bce=loss.get('use_sigmoid', False))
    read['repeats'] = train.sampler.get('num_repeats')
    read['drop_path'] = drop_path(student)
    losses = config.model.distiller.distill_losses
    assert losses.loss_output.gamma == losses.loss_exits.gamma
    read.update(gamma=losses.loss_exits.gamma, exits=losses.loss_exits.loss_weight)
    assert losses.loss_output.loss_weight == 1
    return read


def drop_path(student):
    if 'backbone' not in student:  # of timm
        return student.get('drop_path_rate', 0.0)
    backbone = MODELS.get(f'mmpretrain.{student.backbone.type}')
    default = inspect.signature(backbone).parameters.get('drop_path_rate')
    default = default.default if default else 0.0
    return student.backbone.get('drop_path_rate', default)


@pytest.mark.parametrize('case', AUTHORS, ids='-'.join)
def test_a_recipe_is_that_of_the_authors(case):
    dataset, student = case
    read = ours(compose(dataset, f'swin-t_{student}', 'ofa'))
    assert read == {
        key: pytest.approx(value) if isinstance(value, float) else value
        for key, value in AUTHORS[case].items()
    }


def rates(config, scale=1):
    """Return the learning rates of the epochs, as the runner sets them."""
    model = torch.nn.Linear(1, 1)
    wrapper = build_optim_wrapper(model, dict(optimizer=config.optim_wrapper.optimizer))
    for group in wrapper.param_groups:
        group['lr'] *= scale
    epochs = config.train_cfg.max_epochs
    schedulers = [
        PARAM_SCHEDULERS.build({'end': epochs, **cfg, 'optimizer': wrapper})
        for cfg in config.param_scheduler
    ]
    assert all(
        cfg.by_epoch and 'convert_to_iter_based' not in cfg for cfg in config.param_scheduler
    )
    known = []
    for _ in range(epochs):
        known.append(wrapper.param_groups[0]['lr'])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return np.array(known)


@pytest.mark.parametrize('case', AUTHORS, ids='-'.join)
def test_the_schedule_is_that_of_timm(case):
    dataset, student = case
    config = compose(dataset, f'swin-t_{student}', 'ofa')
    known = AUTHORS[case]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=known['lr'])
    warmup = dict(warmup_t=known['warmup_epochs'], warmup_lr_init=known['warmup_lr'])
    if 'steps' in known:
        scheduler = StepLRScheduler(
            optimizer, decay_t=known['steps'], decay_rate=0.1, warmup_prefix=False, **warmup
        )
    else:
        scheduler = CosineLRScheduler(
            optimizer, t_initial=known['epochs'], lr_min=known['min_lr'], **warmup
        )
    expected = []
    for epoch in range(known['epochs']):
        expected.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch + 1)
    expected, found = np.array(expected), rates(config)
    # the cosine, which has hardly begun, is part of the warm-up here
    first = known['warmup_epochs']
    np.testing.assert_allclose(found[:first], expected[:first], rtol=0.012)
    np.testing.assert_allclose(found[first:], expected[first:], rtol=5e-4)
    # --auto-scale-lr: a batch of an eighth, all rates an eighth
    np.testing.assert_allclose(rates(config, 1 / 8), found / 8)


def test_the_loss_of_the_stronger_recipe_is_that_of_timm():
    cfg = compose('in1k', 'vit-b_resnet50-stronger', 'student').model
    model = MODELS.build({**cfg, 'model_name': 'resnet18', 'num_classes': 5})
    images, shares = torch.randn(3, 3, 64, 64), torch.rand(3, 5)
    samples = [DataSample().set_gt_score(share) for share in shares]
    model.eval()
    expected = BinaryCrossEntropy(smoothing=0.0)(model(images), shares)
    torch.testing.assert_close(model.loss(images, samples)['loss'], expected)


def test_the_policies_of_the_stronger_recipe_are_those_of_timm():
    """At level 7 of 10, as timm applies them, where the sign is not drawn."""
    config = compose('in1k', 'vit-b_resnet50-stronger', 'student')
    policies = at_random(config.train_dataloader.dataset.pipeline, 'RandAugment')['policies']
    named = {policy['type']: policy for policy in policies}
    values = {}
    for name in ('Posterize', 'Solarize', 'SolarizeAdd', 'ColorTransform', 'Sharpness'):
        low, high = named[name]['magnitude_range']
        values[name] = low + 0.7 * (high - low)
    assert math.ceil(values['Posterize']) == auto_augment._posterize_level_to_arg(7, {})[0]
    assert int(values['Solarize']) == auto_augment._solarize_level_to_arg(7, {})[0]
    assert int(values['SolarizeAdd']) == auto_augment._solarize_add_level_to_arg(7, {})[0]
    for name in ('ColorTransform', 'Sharpness'):
        assert 1 + values[name] == pytest.approx(auto_augment._enhance_level_to_arg(7, {})[0])
        assert named[name]['random_negative_prob'] == 0
    assert len(policies) == len(auto_augment._RAND_TRANSFORMS)


@pytest.mark.parametrize('student', ['resnet18', 'mobilenetv2', 'deit-t', 'resmlp-s12'])
def test_images_of_training_and_test(student):
    known = AUTHORS['cifar100', student]
    config = compose('cifar100', f'swin-t_{student}', 'ofa')
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    train, test = (
        Compose(config[loader].dataset.pipeline)
        for loader in ('train_dataloader', 'val_dataloader')
    )
    kind = transforms.InterpolationMode(known['interpolation'])
    theirs = transforms.Compose(
        [
            transforms.Resize(math.floor(224 / known['crop']), kind),
            transforms.CenterCrop(224),
            transforms.PILToTensor(),
        ]
    )
    expected = theirs(Image.fromarray(image))
    assert torch.equal(test(dict(img=image, gt_label=3))['inputs'], expected)
    data = default_collate([train(dict(img=image.copy(), gt_label=i)) for i in range(8)])
    preprocessor = MODELS.build({'type': 'ClsDataPreprocessor', **config.data_preprocessor})
    data = preprocessor(data, training=True)
    assert data['inputs'].shape == (8, 3, 224, 224)
    mixed = any(
        0 < sample.gt_score.max() < 1 for sample in data['data_samples'] if 'gt_score' in sample
    )
    assert mixed == (known['mixup'] is not None)


@pytest.mark.parametrize(
    ('cell', 'forms'),
    [
        (('cifar100', 'swin-t_resnet18', 'ofa'), ('cifar100_resnet18', 'ofa_cifar100_cnn')),
        (('cifar100', 'swin-t_mobilenetv2', 'ofa'), ('cifar100_cnn', 'ofa_cifar100_cnn')),
        (('cifar100', 'swin-t_deit-t', 'ofa'), ('cifar100_token', 'ofa')),
        (('in1k', 'swin-t_deit-t', 'ofa'), ('in1k_token', 'ofa_in1k')),
        (('cifar100', 'resnet18_deit-t', 'kd'), ('cifar100_token', 'kd')),
        (('cifar100', 'resnet18_deit-t', 'teacher'), ('cifar100_teacher',)),
        (('in1k', 'resnet18_deit-t', 'teacher'), ('in1k_resnet18',)),
        (('cifar100', 'deit-t_resnet18', 'student'), ('cifar100_resnet18',)),
    ],
)
def test_the_most_special_form_counts(cell, forms):
    text = compose(*cell).text
    for form in forms:
        assert f'/{form}.py' in text


def test_forms_are_no_methods():
    with pytest.raises(SetupError, match="there is no 'ofa_in1k'"):
        compose('in1k', 'swin-t_deit-t', 'ofa_in1k')
