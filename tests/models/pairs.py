"""Distillations of any pair of the zoo under any method's config."""

import pytest
import torch
from helpers import REPO
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from zoo import CLASSES, ZOO, of_channels

# One of every kind: CNN, attention with and without class token, windows, MLP; both libraries.
FAMILIES = (
    'resnet',
    'mobilenet_v2',
    'convnext',
    'vit',
    'deit_distilled',
    'timm_swin',
    'mlp_mixer',
    'timm_resmlp',
)


def distillation(method, student, teacher, options=None, channels=(3, 3), **keys):
    """Build the distillation of two models of the zoo, each at its own image size."""
    distiller = Config.fromfile(REPO / f'configs/_base_/methods/{method}.py')
    if method == 'crd':  # without a runner nobody counts the images
        options = {'distill_losses.loss_crd.num_images': 50, **(options or {})}
    distiller.merge_from_dict({f'distiller.{k}': v for k, v in (options or {}).items()})
    model = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            teacher=of_channels(teacher, channels[1]),
            distiller=distiller.distiller,
            random_teacher=True,
            **{
                'architecture': of_channels(student, channels[0]),
                'input_size': ZOO[student].size,
                'teacher_input': dict(size=ZOO[teacher].size),
                **keys,
            },
        )
    )
    model.student.init_weights()
    for parameter in (*model.student.parameters(), *model.teacher.parameters()):
        if parameter.ndim > 1 and not parameter.any():  # logits of 0, as from new mixers of timm
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def hugging_face(folder, kind='Dinov2', **keys):
    """The config of a small model of Hugging Face, saved in a folder."""
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, f'{kind}Config')(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=6,
        intermediate_size=48,
        mlp_ratio=2,
        image_size=32,
        patch_size=8,
    )
    getattr(transformers, f'{kind}ForImageClassification')(config).save_pretrained(folder)
    return dict(type='mmkd_tas.Classifier', model=f'hf:{folder}', pretrained=True, **keys)


def batch(model, images=4, soft=False):
    """Random images and labels for a distillation, where it is."""
    device = next(model.parameters()).device
    samples = []
    for i in range(images):
        sample = DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % CLASSES)
        if soft:
            share = torch.zeros(CLASSES)
            share[i % CLASSES], share[(i + 1) % CLASSES] = 0.7, 0.3
            sample.set_gt_score(share)
        samples.append(sample.to(device))
    view = model.student.stage_view
    return torch.randn(images, view.channels, *view.input_size).to(device), samples


def total(losses):
    """Return the sum of what mmengine takes for a loss."""
    return sum(value for name, value in losses.items() if 'loss' in name)


def step(model, *data):
    """Take one step of SGD; return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = model(*data, mode='loss')
    total(losses).backward()
    optimizer.step()
    return losses
