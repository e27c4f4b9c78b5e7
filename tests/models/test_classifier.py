"""Models of every origin, as classifiers of MMPretrain."""

import copy
import functools
import sys

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from helpers import same
from mmengine.registry import MODELS
from mmpretrain.evaluation import Accuracy, AveragePrecision
from mmpretrain.structures import DataSample
from torch import nn

from mmkd_tas.checkpoint import load_weights
from mmkd_tas.errors import SetupError
from mmkd_tas.outputs import num_classes

CLASSES = 5
MASK = {'model.dinov2.embeddings.mask_token'}  # which is for pretraining
SIZES = dict(hidden_size=24, num_attention_heads=2, intermediate_size=48)
IMAGES = dict(image_size=32, patch_size=8, num_labels=CLASSES)


def build(model, **keys):
    return MODELS.build(dict(type='mmkd_tas.Classifier', model=model, **keys))


class OwnNet(nn.Module):
    """With a part that is called as the classifier calls the whole, and a second output."""

    def __init__(self, width=8, num_classes=3):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)

    def init_weights(self):
        nn.init.zeros_(self.fc.weight)

    def forward(self, images):
        feature = self.model(images).mean((2, 3))
        return self.fc(feature), feature


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
    """Folders of small random models, as Hugging Face saves them."""
    transformers = pytest.importorskip('transformers')
    kinds = {
        'ViT': dict(num_hidden_layers=4, **SIZES, **IMAGES),
        'Dinov2': dict(num_hidden_layers=4, **SIZES, **IMAGES),
        'ResNet': dict(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_labels=CLASSES
        ),
    }

    @functools.cache
    def folder(kind):
        path = tmp_path_factory.mktemp(kind)
        config = getattr(transformers, f'{kind}Config')(**kinds[kind])
        getattr(transformers, f'{kind}ForImageClassification')(config).save_pretrained(path)
        return path

    return folder


def images_and_labels(size=32):
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    return images, [DataSample().set_gt_label(i) for i in range(4)]


def soft(samples):
    for i, sample in enumerate(samples):
        share = torch.zeros(CLASSES)
        share[i], share[i + 1] = 0.7, 0.3
        sample.set_gt_score(share)
    return samples


def labelled(samples):
    for i, sample in enumerate(samples):
        sample.set_gt_label([i, i + 1] if i % 2 else [i])
    return samples


def predictions(images, samples, *models):
    return (model(images, copy.deepcopy(samples), mode='predict') for model in models)


def of_mmpretrain(head):
    backbone = dict(type='ResNet', depth=18, base_channels=8, out_indices=(3,))
    head = dict(in_channels=64, num_classes=CLASSES, **head)
    neck = dict(type='GlobalAveragePooling')
    model = MODELS.build(
        dict(type='mmpretrain.ImageClassifier', backbone=backbone, neck=neck, head=head)
    )
    return model.eval()


@pytest.mark.parametrize('labels', [list, soft])
@pytest.mark.parametrize(
    'loss',
    [
        None,
        dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        dict(type='FocalLoss'),
    ],
)
def test_losses_and_predictions_are_those_of_mmpretrain(loss, labels):
    given = {} if loss is None else dict(loss=loss)
    theirs = of_mmpretrain(dict(type='LinearClsHead', **given))
    ours = build(theirs, **given).eval()
    images, samples = images_and_labels()
    samples = labels(samples)
    assert torch.equal(ours(images), theirs(images))
    assert same(*(m(images, samples, mode='loss') for m in (ours, theirs)))
    predicted, expected = (
        m(images, copy.deepcopy(samples), mode='predict') for m in (ours, theirs)
    )
    for one, other in zip(predicted, expected, strict=True):
        assert torch.equal(one.pred_score, other.pred_score)
        assert torch.equal(one.pred_label, other.pred_label)
    metric = Accuracy(topk=(1, 2))
    metric.process(None, [sample.to_dict() for sample in predicted])
    assert metric.evaluate(4)['accuracy/top2'] >= 0


def test_several_labels():
    theirs = of_mmpretrain(dict(type='MultiLabelLinearClsHead'))
    ours = build(theirs, multi_label=True).eval()
    images, samples = images_and_labels()
    samples = labelled(samples)
    assert same(*(m(images, samples, mode='loss') for m in (ours, theirs)))
    predicted, expected = (
        m(images, copy.deepcopy(samples), mode='predict') for m in (ours, theirs)
    )
    for one, other in zip(predicted, expected, strict=True):
        assert torch.equal(one.pred_score, other.pred_score)
        assert torch.equal(one.pred_label, other.pred_label)
    metric = AveragePrecision()
    metric.process(None, [sample.to_dict() for sample in predicted])
    assert metric.evaluate(4)['multi-label/mAP'] > 0


@pytest.mark.parametrize('labels', [list, soft])
def test_binary_cross_entropy_takes_indices_too(labels):
    loss = dict(type='mmpretrain.CrossEntropyLoss', use_sigmoid=True)
    model = build('timm:test_resnet', num_classes=CLASSES, loss=loss).eval()
    images, samples = images_and_labels()
    samples = labels(samples)
    found = 4 * model(images, samples, mode='loss')['loss']
    shares = torch.stack([s.gt_score for s in samples]) if labels is soft else torch.eye(4, CLASSES)
    expected = nn.functional.binary_cross_entropy_with_logits(
        model(images), shares, reduction='sum'
    )
    torch.testing.assert_close(found, expected)
    assert labels is soft or 'gt_score' not in samples[0]


def library_model(name, num_classes):
    """What the library itself makes of a name, or None."""
    origin, _, bare = name.partition(':')
    if origin == 'timm':
        return timm.create_model(bare, num_classes=num_classes)
    return torchvision.models.get_model(bare, num_classes=num_classes)


@pytest.mark.parametrize('name', ['timm:test_vit', 'torchvision:shufflenet_v2_x0_5'])
def test_keys_are_those_of_the_library(name, tmp_path):
    theirs = library_model(name, CLASSES).eval()
    ours = build(name, num_classes=CLASSES).eval()
    assert ours.num_classes == CLASSES
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    load_weights(ours, tmp_path / 'theirs.pth', 'checkpoint')
    size = 160 if 'vit' in name else 64
    images, _ = images_and_labels(size)
    assert torch.equal(ours(images), theirs(images))
    other = library_model(name, CLASSES).eval()
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(images), theirs(images))


def test_keys_within_another_model(tmp_path):
    outer, inner = nn.ModuleDict({'a': build(OwnNet())}), build(OwnNet())
    assert list(outer.state_dict()) == [f'a.{key}' for key in OwnNet().state_dict()]
    for weights in (
        {f'a.{key}': value for key, value in inner.state_dict().items()},
        {f'a.model.{key}': value for key, value in inner.model.state_dict().items()},
    ):
        outer.load_state_dict(weights)
        assert same(dict(outer['a'].model.state_dict()), dict(inner.model.state_dict()))
        outer.load_state_dict({key: 0 * value for key, value in weights.items()})
    with pytest.raises(RuntimeError, match='Missing key'):
        outer.load_state_dict({'a.fc.weight': torch.zeros(3, 8)})


@pytest.mark.parametrize('kind', ['ViT', 'Dinov2', 'ResNet'])
def test_hugging_face(hf, kind, tmp_path):
    transformers = pytest.importorskip('transformers')
    folder = hf(kind)
    images, samples = images_and_labels()
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    ours = build(f'hf:{folder}', pretrained=True).eval()
    assert ours.num_classes == CLASSES
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours(images), theirs(images).logits)
    ours(images, samples, mode='loss')['loss'].backward()
    assert all(
        p.grad is not None for name, p in ours.named_parameters() if 'mask_token' not in name
    )
    # from a file of the library, whose names are not those of the modules, and back
    again = build(f'hf:{folder}').eval()
    assert not torch.equal(again(images), ours(images))
    load_weights(again, folder, 'checkpoint')
    assert torch.equal(again(images), ours(images))
    config = theirs.config
    config.save_pretrained(tmp_path)
    weights = {key: value.contiguous() for key, value in ours.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors', {'format': 'pt'})
    back = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(back(images).logits, ours(images))


@pytest.mark.parametrize('kind', ['ViT', 'Dinov2', 'ResNet'])
def test_hugging_face_with_another_head_or_none(hf, kind):
    images, samples = images_and_labels()
    whole = build(f'hf:{hf(kind)}', pretrained=True).eval()
    other = build(f'hf:{hf(kind)}', pretrained=True, num_classes=9).eval()
    assert other.num_classes == 9
    assert other(images).shape == (4, 9)
    headless = build(f'hf:{hf(kind)}', pretrained=True, num_classes=0).eval()
    assert headless.num_classes == 0
    assert headless(images).shape == (4, 16 if kind == 'ResNet' else 24)
    body = headless.state_dict()
    for model in (whole, other):
        prefix = model.model.base_model_prefix
        weights = model.state_dict()
        assert all(torch.equal(body[key], weights[f'{prefix}.{key}']) for key in body)
    with pytest.raises(SetupError, match='num_classes=0'):
        headless(images, samples, mode='loss')


@pytest.mark.parametrize('kind', ['ViT', 'Dinov2'])
def test_pretrained_models_of_hugging_face_take_images_of_other_sizes(hf, kind):
    images, _ = images_and_labels(48)
    own, other = (
        build(f'hf:{hf(kind)}', pretrained=True, img_size=size).eval() for size in (None, 48)
    )
    assert torch.equal(own(images), other(images))
    assert own(images).shape == (4, CLASSES)


@pytest.mark.parametrize('name', ['timm:test_resnet', 'torchvision:squeezenet1_1'])
def test_without_a_head(name):
    images, samples = images_and_labels(64)
    model = build(name, num_classes=0).eval()
    assert (model.num_classes, model(images).ndim) == (0, 2)
    keys = library_model(name, CLASSES).state_dict().keys() - model.state_dict().keys()
    assert {key.rpartition('.')[2] for key in keys} == {'weight', 'bias'}
    with pytest.raises(SetupError, match='num_classes=0'):
        model(images, samples, mode='predict')


def test_weights_of_torchvision_with_other_classes(tmp_path, monkeypatch):
    """The body is that of the file, the head new; auxiliary classifiers come along."""
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    source = torchvision.models.shufflenet_v2_x0_5()
    file = tmp_path / 'checkpoints' / weights.url.rpartition('/')[2]
    file.parent.mkdir()
    torch.save(source.state_dict(), file)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    for classes, shape in ((None, 1000), (CLASSES, CLASSES), (0, 1024)):
        model = build('torchvision:shufflenet_v2_x0_5', pretrained=True, num_classes=classes).eval()
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, shape)
        for key, value in source.state_dict().items():
            if not key.startswith('fc.') or classes is None:
                assert torch.equal(model.state_dict()[key], value)


def test_auxiliary_classifiers_of_torchvision():
    """They learn with a weight of 0.3, and every parameter learns."""
    model = build('torchvision:googlenet', num_classes=CLASSES, init_weights=False).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, samples = images_and_labels(64)
    losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    output, labels = model.model(images), torch.arange(4)
    for name, logits, weight in (
        ('loss', output.logits, 1),
        ('loss_auxiliary1', output.aux_logits2, 0.3),
        ('loss_auxiliary2', output.aux_logits1, 0.3),
    ):
        expected = weight * nn.functional.cross_entropy(logits, labels)
        torch.testing.assert_close(losses[name], expected)


def test_a_module_of_ones_own():
    config = dict(type=f'{OwnNet.__module__}.OwnNet', width=4)
    model = build(config, num_classes=7)
    images, samples = images_and_labels()
    assert model.num_classes == 7
    assert model(images).shape == (4, 7)
    assert model(images, samples, mode='loss')['loss'].ndim == 0
    before = copy.deepcopy(model.state_dict())
    model.init_weights()
    assert same(dict(before), dict(model.state_dict()))
    assert num_classes(build(OwnNet())) is None


def test_options_of_the_libraries():
    model = build('timm:vit_tiny_patch16_224', img_size=32, drop_path_rate=0.2, with_cp=True)
    assert model.model.patch_embed.img_size == (32, 32)
    assert model.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.model.grad_checkpointing
    assert build('timm:test_resnet', img_size=32)(torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    vit = build('torchvision:vit_b_32', img_size=64, num_classes=3, dropout=0.5)
    assert vit(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert vit.model.encoder.dropout.p == 0.5


@pytest.mark.parametrize(
    ('model', 'keys', 'said'),
    [
        ('timm:resnet_18', {}, "'timm:resnet18' or .*'torchvision:resnet18'"),
        ('torchvision:swin_tiny', {}, "timm:swin.*'torchvision:swin_t'"),
        ('resnet18', {}, "does not begin with timm:, .*'timm:resnet18'"),
        ('timm:resnet18', dict(drop_pathrate=0.1), "no argument 'drop_pathrate'"),
        (
            'torchvision:vit_b_32',
            dict(img_size=33),
            'with these arguments: Input shape',
        ),
        ('torchvision:resnet18', dict(weights='V9'), 'cannot be built with these'),
        ('torchvision:resnet18', dict(with_cp=True), 'no gradient checkpointing'),
        (OwnNet(), dict(width=3), 'put it into the dict'),
        ('timm:vit_giant_patch14_224', dict(pretrained=True), 'no weights of .*list_pretrained'),
    ],
)
def test_mistakes(model, keys, said):
    with pytest.raises(SetupError, match=said):
        build(model, **keys)


@pytest.mark.parametrize(
    ('keys', 'said'),
    [
        (dict(hiden=3), "no argument 'hiden'"),
        (dict(intermediate_size=40, pretrained=True), 'would stay random'),
    ],
)
def test_mistakes_with_hugging_face(hf, keys, said):
    with pytest.raises(SetupError, match=said):
        build(f'hf:{hf("ViT")}', **keys)


def test_hugging_face_that_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    with pytest.raises(SetupError, match='neither a folder that holds a config.json'):
        build(f'hf:{tmp_path}')


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(SetupError, match='pip install transformers'):
        build('hf:facebook/dinov2-base')
