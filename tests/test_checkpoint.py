import logging
import os

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from helpers import captured_log, same
from mmengine.registry import MODELS
from torch import nn

from mmkd_tas.checkpoint import find_checkpoint, fingerprint, load_weights, read_checkpoint
from mmkd_tas.errors import SetupError


def classifier(channels=4, classes=10, depth=18):
    head = dict(type='LinearClsHead', in_channels=8 * channels, num_classes=classes)
    backbone = dict(
        type='ResNet_CIFAR', depth=depth, base_channels=channels, stem_channels=channels
    )
    neck = dict(type='GlobalAveragePooling')
    return MODELS.build(dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head))


def timm_classifier():
    cfg = dict(type='TimmClassifier', model_name='resnet18', num_classes=10)
    return MODELS.build(cfg)


def saved(tmp_path, content, name='checkpoint.pth'):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def assert_loads(target, path, source):
    load_weights(target, path, 'test')
    for (key, ours), theirs in zip(target.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: {'state_dict': w, 'meta': {'epoch': 1}, 'optimizer': {}},
        lambda w: {'model': w},
        lambda w: {'state_dict': prefixed('module.', w)},
        lambda w: {'state_dict': {**prefixed('architecture.', w), 'distiller.x': torch.ones(1)}},
        lambda w: {'state_dict': {k: v + 1 for k, v in w.items()}, 'state_dict_ema': w},
    ],
    ids=['bare', 'mmengine', 'timm', 'ddp', 'distillation', 'ema'],
)
def test_reads_every_layout(tmp_path, wrap):
    source = classifier()
    assert_loads(classifier(), saved(tmp_path, wrap(source.state_dict())), source)


def test_reads_safetensors(tmp_path):
    source = classifier()
    file = tmp_path / 'x.safetensors'
    safetensors.torch.save_file(source.state_dict(), file)
    assert_loads(classifier(), file, source)


@pytest.mark.parametrize('prefix', ['', 'architecture.model.', 'model.'])
def test_reads_timm_checkpoints(tmp_path, prefix):
    source = timm.create_model('resnet18', num_classes=10)
    file = saved(tmp_path, prefixed(prefix, source.state_dict()))
    assert_loads(timm_classifier(), file, source)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: {'model_state_dict': w, 'epoch': 3},
        lambda w: {'model_ema': {'module': w}, 'model': {k: v + 1 for k, v in w.items()}},
        lambda w: {'model_ema': None, 'model': w},
        lambda w: {'state_dict': prefixed('module._orig_mod.', w)},
        lambda w: {'state_dict': {**prefixed('net.', w), 'criterion.weight': torch.ones(1)}},
    ],
    ids=['loop', 'ema', 'no ema', 'compiled', 'lightning'],
)
def test_reads_what_loops_wrap_weights_in(tmp_path, wrap):
    source = timm.create_model('test_resnet', num_classes=10)
    target = timm.create_model('test_resnet', num_classes=10)
    assert_loads(target, saved(tmp_path, wrap(source.state_dict())), source)
    weights = source.state_dict()
    both = saved(tmp_path, {**prefixed('a.', weights), **prefixed('b.', weights)})
    with pytest.raises(SetupError, match=r'holds several such models, a\. and b\.;'):
        load_weights(target, both, 'test')


def small_swin():
    return timm.create_model('swin_s3_tiny_224', embed_dim=16, depths=(1, 1, 1, 1), img_size=64)


def test_reads_swin_of_older_timm(tmp_path):
    """Its layers ended with the downsampling, its head was linear, and it stored masks."""
    source = small_swin().eval()
    old = {}
    for key, value in source.state_dict().items():
        parts = key.split('.')
        if 'downsample' in parts:
            parts[1] = str(int(parts[1]) - 1)
        old['.'.join(parts).replace('head.fc.', 'head.')] = value
    old['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(2, 2)
    old['layers.0.blocks.0.attn_mask'] = torch.zeros(2, 2)
    assert old.keys() != source.state_dict().keys()
    images = torch.randn(2, 3, 64, 64)
    cfg = dict(type='mmkd_tas.Classifier', model=small_swin())
    for target in (small_swin(), MODELS.build(cfg)):
        with captured_log(logging.INFO) as messages:
            load_weights(target.eval(), saved(tmp_path, {'model': old}), 'model.teacher_ckpt')
        assert torch.equal(target(images), source(images))
        assert any("timm's filter for older layouts" in message for message in messages)


@pytest.mark.parametrize('name', ['test_vit2', 'test_vit', 'timm', 'torchvision', 'hf'])
def test_position_tables_of_another_image_size(tmp_path, name):
    """As timm resamples them itself."""
    if name == 'torchvision':
        models = [torchvision.models.VisionTransformer(s, 8, 1, 2, 16, 16) for s in (48, 32)]
        key, prefix = 'encoder.pos_embedding', 1
    elif name == 'hf':
        transformers = pytest.importorskip('transformers')
        sizes = dict(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, patch_size=8)
        models = [
            transformers.ViTForImageClassification(transformers.ViTConfig(image_size=s, **sizes))
            for s in (48, 32)
        ]
        key, prefix = 'vit.embeddings.position_embeddings', 1
    else:
        kind = 'deit_tiny_distilled_patch16_224' if name == 'timm' else name
        keys = dict(depth=1, embed_dim=12, num_heads=1)
        models = [timm.create_model(kind, img_size=s, **keys) for s in (96, 64)]
        key, prefix = 'pos_embed', models[0].num_prefix_tokens
    source, target = (MODELS.build(dict(type='mmkd_tas.Classifier', model=m)) for m in models)
    torch.nn.init.normal_(dict(source.model.named_parameters())[key])
    before, after = (dict(m.named_parameters())[key] for m in models)
    with captured_log(logging.INFO) as messages:
        load_weights(target, saved(tmp_path, source.state_dict()), 'model.teacher_ckpt')
    side = int((after.shape[1] - prefix) ** 0.5)
    made = timm.layers.resample_abs_pos_embed(before, [side, side], num_prefix_tokens=prefix)
    assert torch.equal(dict(target.model.named_parameters())[key], made)
    told = [message for message in messages if message.startswith('model.teacher_ckpt: ')]
    assert f'{key} is resampled from {tuple(before.shape)} to {tuple(after.shape)}' in told[0]


@pytest.mark.parametrize(
    ('name', 'layout'),
    [
        ('timm:vit_tiny_patch16_224', "timm's ViT and DeiT"),
        ('timm:test_resnet', 'ResNets of timm and torchvision'),
        ('torchvision:squeezenet1_1', "torchvision's"),
        ('timm:mixer_s32_224', "timm's MLP-Mixer"),
    ],
)
def test_the_layout_of_another_model_is_named(tmp_path, name, layout):
    weights = MODELS.build(dict(type='mmkd_tas.Classifier', model=name)).state_dict()
    message = misfit(tmp_path, weights)
    assert f'Its names are those of {layout}' in message
    assert "the model has those of MMPretrain's" in message
    assert 'missing: ' in message
    assert 'of another architecture' in misfit(tmp_path, weights, small_swin())


def misfit(tmp_path, content, target=None):
    with pytest.raises(SetupError) as error:
        load_weights(target or classifier(), saved(tmp_path, content), 'model.teacher_ckpt')
    assert str(error.value).startswith('model.teacher_ckpt: ')
    return str(error.value)


def test_misfits_are_told_by_key(tmp_path):
    weights = classifier().state_dict()
    message = misfit(tmp_path, {k: v for k, v in weights.items() if k != 'head.fc.bias'})
    assert '1 missing: head.fc.bias' in message
    message = misfit(tmp_path, {**weights, 'head.more': torch.ones(1)})
    assert '1 unexpected: head.more' in message
    message = misfit(tmp_path, classifier(classes=7).state_dict())
    assert "trained for 7 classes and the model's head has 10" in message
    assert 'head.fc.weight' in message
    message = misfit(tmp_path, classifier(channels=2).state_dict())
    assert 'another architecture' in message
    assert 'backbone.conv1.weight ((2, 3, 3, 3), model (4, 3, 3, 3))' in message
    message = misfit(tmp_path, timm.create_model('vit_tiny_patch16_224', depth=1).state_dict())
    assert 'missing: ' in message
    assert 'unexpected: cls_token, ' in message
    assert 'holds no state_dict' in misfit(tmp_path, {'state_dict': {}})


@pytest.mark.parametrize('prefix', ['', 'architecture.', 'module.'])
def test_a_head_may_be_missing_on_either_side(tmp_path, prefix):
    whole, other = classifier(), classifier()
    file = saved(tmp_path, prefixed(prefix, whole.backbone.state_dict()))
    load_weights(other, file, 'test', classes=10)
    assert same(dict(other.backbone.state_dict()), dict(whole.backbone.state_dict()))
    with pytest.raises(SetupError, match='2 missing: head.fc.weight, head.fc.bias'):
        load_weights(other, file, 'test')
    headless = MODELS.build(dict(type='mmkd_tas.Classifier', model=whole.backbone, num_classes=0))
    file = saved(
        tmp_path, prefixed(prefix, {**headless.state_dict(), 'fc.weight': torch.ones(7, 8)})
    )
    load_weights(headless, file, 'test', classes=0)
    with pytest.raises(SetupError, match='1 unexpected: fc.weight'):
        load_weights(headless, file, 'test')


@pytest.mark.parametrize('key', ['head.fc.bias', 'backbone.conv1.weight', 'backbone.bn1.weight'])
def test_nothing_but_a_head_may_be_missing(tmp_path, key):
    weights = classifier(channels=10).state_dict()  # as many as there are classes
    del weights[key]
    with pytest.raises(SetupError, match=f'1 missing: {key}'):
        load_weights(classifier(channels=10), saved(tmp_path, weights), 'test', classes=10)


def test_unreadable_files(tmp_path):
    with pytest.raises(SetupError, match="no checkpoint file at 'none.pth'"):
        read_checkpoint('none.pth')
    whole = saved(tmp_path, classifier().state_dict())
    for size in (0, 10, whole.stat().st_size // 2, whole.stat().st_size - 1):
        part = tmp_path / 'part.pth'
        part.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(SetupError, match='not a whole checkpoint'):
            read_checkpoint(part)
    part = tmp_path / 'part.safetensors'
    part.write_bytes(b'123')
    with pytest.raises(SetupError, match='not a whole checkpoint'):
        read_checkpoint(part)
    with pytest.raises(SetupError, match='holds a list'):
        read_checkpoint(saved(tmp_path, [1]))
    with pytest.raises(SetupError, match='cannot be downloaded'):
        read_checkpoint('http://127.0.0.1:9/x.pth')


class Evil:
    def __reduce__(self):
        return os.system, ('true',)


def test_a_malicious_file_is_refused_by_name(tmp_path):
    with pytest.raises(SetupError, match=r"refused: it wants to call '\w+\.system'"):
        read_checkpoint(saved(tmp_path, {'state_dict': Evil()}))


def test_find_checkpoint_takes_the_newest_whole_one(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for epoch in (2, 9, 10):
        saved(tmp_path, {'epoch': epoch}, f'epoch_{epoch}.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_10.pth'
    pointer = tmp_path / 'last_checkpoint'
    pointer.write_text('/moved/away/epoch_9.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_9.pth'
    pointer.write_text('')
    (tmp_path / 'epoch_10.pth').write_bytes(b'cut')
    assert find_checkpoint(tmp_path).name == 'epoch_9.pth'
    pointer.write_text(str(tmp_path / 'epoch_10.pth'))
    assert find_checkpoint(tmp_path).name == 'epoch_9.pth'


def test_loading_gives_the_model_nothing_but_weights(tmp_path):
    model = nn.Linear(2, 2)
    whole = load_weights(model, saved(tmp_path, {'state_dict': model.state_dict(), 'meta': 1}), '')
    assert whole['meta'] == 1


def test_a_fingerprint_tells_weights_apart():
    model = classifier()
    first = fingerprint(model)
    other = classifier()
    assert fingerprint(other) != first
    other.load_state_dict(model.state_dict())
    assert fingerprint(other) == first
    # the file's layout in memory is not part of it, a buffer and a type are
    assert fingerprint(other.to(memory_format=torch.channels_last)) == first
    other.backbone.bn1.num_batches_tracked += 1
    assert fingerprint(other) != first
    assert fingerprint(model.bfloat16()) != first
    same = [nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))]
    same[0][1].load_state_dict(same[1][0].state_dict())
    assert fingerprint(same[0]) != fingerprint(same[1])
