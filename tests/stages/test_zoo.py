"""The contract of the view, over every family."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from helpers import sampled
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from torch.nn.modules.batchnorm import _BatchNorm
from zoo import CLASSES, ZOO

from mmkd_tas.errors import SetupError
from mmkd_tas.registry import TASK_UTILS
from mmkd_tas.stages import StageOutputsRecorder, describe, view_of

# One of each kind: what is written once for all, and what has something of its own.
QUICK = (
    *('resnet', 'mobilenet_v2', 'densenet', 'vgg', 'repvgg', 'vit', 'deit_distilled', 'eva02'),
    *('swin_nano', 'mlp_mixer', 'davit', 'timm_backbone', 'timm_vit', 'timm_beit', 'timm_swin'),
    *('timm_cait', 'timm_xcit', 'timm_pvt_v2', 'timm_maxvit', 'timm_mobilevit'),
)
SOURCES = ('stage1', 'stage2', 'stage3', 'stage4', 'pooled', 'logits')


def build(name, **changes):
    torch.manual_seed(0)
    entry = ZOO[name]
    cfg = copy.deepcopy(entry.cfg)
    for key, value in changes.items():
        node = cfg
        for part in key.split('.')[:-1]:
            node = node[part]
        node[key.split('.')[-1]] = value
    model = MODELS.build(cfg)
    for module in model.modules():  # not the identity that untrained statistics make
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():  # not logits of 0, as from timm's new mixers
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def recorders_of(model, layout='raw'):
    cfg = dict(type='mmkd_tas.StageOutputsRecorder', layout=layout)
    recorders = {source: TASK_UTILS.build(dict(cfg, source=source)) for source in SOURCES}
    for recorder in recorders.values():
        recorder.initialize(model)
    return recorders


def record(model, images, recorders, **kwargs):
    """Run a model with all recorders; return the records and the output."""
    for recorder in recorders.values():
        recorder.__enter__()
    output = model(images, **kwargs)
    for recorder in recorders.values():
        recorder.__exit__(None, None, None)
    return {key: recorder.get_record_data() for key, recorder in recorders.items()}, output


def fingerprint(model):
    """Everything that looking at a model must not change."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [sorted(vars(m)) for m in model.modules() if m is not model],
        torch.get_rng_state(),
    )


def assert_same(before, after):
    for ours, theirs in zip(before[0].values(), after[0].values(), strict=True):
        assert torch.equal(ours, theirs)
    assert before[1:-1] == after[1:-1]
    assert torch.equal(before[-1], after[-1])


def check(model, size):
    """Declared shapes are the real ones, and every tail gives the model's own answer."""
    view = describe(model, size)
    model.train()
    before = fingerprint(model)
    stages = view.stages
    tails = [view.tail(k) for k in range(1, 5)]
    assert_same(before, fingerprint(model))

    assert len(stages) == 4
    model.eval()
    recorders = recorders_of(model)
    images = torch.randn(3, 3, *view.input_size)
    records, logits = record(model, images, recorders)
    assert logits.shape == (3, CLASSES) == (3, view.num_classes)
    assert logits.std() > 0
    torch.testing.assert_close(records['logits'], logits)
    assert records['pooled'].shape == (3, view.width)
    tokens = [stage.tokens for stage in stages]
    assert tokens == sorted(tokens, reverse=True)
    for number, (stage, tail) in enumerate(zip(stages, tails, strict=True), 1):
        feature = records[f'stage{number}']
        assert feature.shape[1:] == stage.shape
        assert stage.to_map(feature).shape == (3, stage.channels, *stage.grid)
        height, width = stage.grid
        assert abs(height / width - view.input_size[0] / view.input_size[1]) < 0.5
        rebuilt = stage.from_tokens(stage.to_tokens(feature), stage.prefix_tokens(feature))
        torch.testing.assert_close(rebuilt, feature)
        with torch.no_grad():
            pooled, replayed, last = tail(feature)
        torch.testing.assert_close(replayed, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pooled, records['pooled'], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last, records['stage4'], rtol=1e-5, atol=1e-5)
    for recorder in recorders.values():
        recorder.remove()


@pytest.mark.parametrize('name', sampled(ZOO, lambda _, name: name in QUICK))
def test_stages_and_tails(name):
    check(build(name), ZOO[name].size)


@pytest.mark.parametrize(
    'names', [QUICK, pytest.param(tuple(ZOO), marks=pytest.mark.slow)], ids=['quick', 'all']
)
def test_the_stages_are_the_true_ones(names):
    """Module, layout, prefix tokens, channels and grid, which equal logits do not prove.

    They are those that the libraries' own records and class tables give, but for: DenseNet,
    the last block instead of the norm after it; RepVGG, the last stage instead of the
    identity after it; GhostNet, the last block of each grid, where timm's record has the
    first of the next before.
    """
    true = json.loads((Path(__file__).parent / 'true_stages.json').read_text())
    assert true.keys() == ZOO.keys()
    for name in names:
        stages = describe(MODELS.build(ZOO[name].cfg), ZOO[name].size).stages
        found = [
            f'{s.module} {s.layout} {s.prefix} {s.channels} {s.grid[0]}x{s.grid[1]}' for s in stages
        ]
        assert found == true[name], name


class Rows(torch.nn.Module):
    """Tokens in an order of one's own, with constants around them, between two embeddings."""

    def __init__(self, order, before=0, after=0):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 4, 4)
        self.order = order
        self.tokens = torch.nn.Parameter(torch.randn(1, before + after, 8))
        self.before = before
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
            for _ in range(4)
        )
        self.head = torch.nn.Linear(8, 5)

    def forward(self, images):
        rows = self.order(self.embed(images))
        tokens = self.tokens.expand(len(rows), -1, -1)
        rows = torch.cat([tokens[:, : self.before], rows, tokens[:, self.before :]], 1)
        for block in self.blocks:
            rows = rows + torch.tanh(rows)
            rows = block(rows)
        return self.head(rows.mean(1))


def by_rows(maps):
    return maps.flatten(2).transpose(1, 2)


def by_columns(maps):
    return maps.transpose(2, 3).flatten(2).transpose(1, 2)


def by_windows(maps):
    return (
        maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(2).transpose(1, 2)
    )


@pytest.mark.parametrize(
    ('order', 'before', 'after', 'size', 'found'),
    [
        (by_rows, 0, 0, (32, 32), (0, (8, 8))),
        (by_rows, 1, 0, (32, 32), (1, (8, 8))),
        (by_rows, 4, 0, (32, 32), (4, (8, 8))),  # 68 tokens could be 4 x 17
        (by_rows, 0, 0, (16, 64), (0, (4, 16))),
        (by_rows, 5, 0, (48, 16), (5, (12, 4))),
        (by_rows, 0, 1, (32, 32), None),  # a token behind the others
        (by_columns, 0, 0, (32, 32), None),
        (by_windows, 1, 0, (32, 32), None),
    ],
)
def test_grid_and_prefix_of_tokens(order, before, after, size, found):
    view = describe(Rows(order, before, after), size)
    if found is None:
        with pytest.raises(SetupError, match='could not be found'):
            _ = view.stages
    else:
        assert {(s.layout, s.prefix, s.grid) for s in view.stages} == {('NLC', *found)}


OBLONG = [name for name, entry in ZOO.items() if entry.oblong]


@pytest.mark.parametrize('name', sampled(OBLONG, lambda _, name: name in QUICK))
def test_images_that_are_not_square(name):
    entry = ZOO[name]
    check(build(name, **(entry.oblong_keys or {})), entry.oblong)


@pytest.mark.parametrize('name', sampled(ZOO, lambda _, name: name in QUICK))
def test_recording_changes_nothing(name):
    """Neither outputs, gradients, randomness nor statistics, in training."""
    samples = [DataSample().set_gt_label(i) for i in range(3)]
    images = torch.randn(3, 3, ZOO[name].size, ZOO[name].size)
    results = []
    for watched in (False, True):
        model = build(name).train()
        describe(model, ZOO[name].size)
        torch.manual_seed(1)
        if watched:
            records, losses = record(
                model, images, recorders_of(model), data_samples=samples, mode='loss'
            )
        else:
            losses = model(images, samples, mode='loss')
        losses['loss'].backward()
        gradients = [p.grad for p in model.parameters()]
        results.append((losses['loss'], gradients, list(model.buffers()), torch.rand(1)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    # what is recorded in training is what the loss is made of
    assert records['logits'].shape == (3, CLASSES)
    assert all(records[source].requires_grad for source in SOURCES)


@pytest.mark.parametrize('name', sampled(ZOO, lambda _, name: name in QUICK))
def test_tail_trains_the_tail_alone(name):
    """Gradients reach the feature and the weights after it; nothing before it moves."""
    model = build(name)
    view = describe(model, ZOO[name].size)
    stage, tail = view.stage(3), view.tail(3)
    model.train()
    buffers = [buffer.clone() for buffer in model.buffers()]
    feature = torch.randn(2, *stage.shape, requires_grad=True)
    tail(feature).logits.sum().backward()
    assert feature.grad.abs().sum() > 0
    last = model.get_submodule(view.classifiers[0])
    assert all(p.grad is not None for p in last.parameters())
    stem = next(p for p in model.parameters() if p.ndim == 4)
    assert stem.grad is None
    for before, after in zip(buffers, model.buffers(), strict=True):
        assert torch.equal(before, after)
    assert 'forward' not in vars(model.get_submodule(stage.module))


PREFIXED = [name for name in ZOO if any(part in name for part in ('vit', 'deit', 'beit', 'eva'))]


def test_a_tail_after_its_layers_were_replaced():
    """As SyncBN does, after the model was built and before it is trained."""
    model = build('resnet').train()
    view = describe(model, ZOO['resnet'].size)
    tail = view.tail(2)
    for path, module in [*model.named_modules()]:
        if isinstance(module, _BatchNorm):
            parent, _, name = path.rpartition('.')
            setattr(model.get_submodule(parent), name, copy.deepcopy(module))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tail(torch.randn(2, *view.stage(2).shape))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', PREFIXED)
def test_tail_with_the_models_own_class_token(name):
    model = build(name)
    view = describe(model, ZOO[name].size)
    stage = view.stage(3)
    if not stage.prefix:
        pytest.skip('has no prefix tokens')
    model.eval()
    tail = view.tail(3)
    tokens = torch.randn(2, stage.tokens, stage.channels)
    # the class token as it enters the first block, of other images
    seen = []
    hook = model.get_submodule(view.stages[0].module.rpartition('.')[0] + '.0')
    handle = hook.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(2, 3, *view.input_size))
    handle.remove()
    expected = tail(stage.from_tokens(tokens, seen[0][:, : stage.prefix]))
    torch.testing.assert_close(tail(tokens, own_prefix=True), expected)


def test_the_class_token_is_not_dropped_on_its_way():
    model = build('vit', **{'backbone.drop_rate': 0.9}).eval()
    view = describe(model, 32)
    tail, tokens = view.tail(3), torch.randn(2, 16, 24)
    expected = tail(tokens, own_prefix=True)
    model.backbone.drop_after_pos.train()
    torch.testing.assert_close(tail(tokens, own_prefix=True), expected)
    assert model.backbone.drop_after_pos.training


@pytest.mark.parametrize('name', sampled(ZOO, lambda _, name: name in QUICK))
def test_the_model_stays_a_model(name):
    """Copies, pickles and checkpoints are as if nobody had looked."""
    model = build(name).eval()
    keys = list(model.state_dict())
    view = describe(model, ZOO[name].size)
    recorders = recorders_of(model)
    images = torch.randn(2, 3, *view.input_size)
    expected = model(images)
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(model)
    assert view_of(twin) is not view
    torch.testing.assert_close(twin(images), expected)
    (logits,) = (copied for copied in [view_of(twin).tail(2)])
    record_, _ = record(model, images, recorders)
    torch.testing.assert_close(logits(record_['stage2']).logits, expected)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(images), expected)


@pytest.mark.parametrize('name', ['resnet', 'vit', 'swin_nano', 'timm_convnext'])
def test_mixed_precision_and_channels_last(name):
    model = build(name).eval()
    view = describe(model, ZOO[name].size)
    tails = [view.tail(k) for k in range(1, 5)]
    images = torch.randn(2, 3, *view.input_size).to(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        records, logits = record(model, images, recorders_of(model))
        for number, tail in enumerate(tails, 1):
            replayed = tail(records[f'stage{number}']).logits
            torch.testing.assert_close(replayed, logits, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet', 'vit', 'timm_swin', 'timm_mixer'])
def test_compiled_models(name):
    model = build(name).eval()
    view = describe(model, ZOO[name].size)
    tail = view.tail(3)
    recorders = recorders_of(model)
    images = torch.randn(2, 3, *view.input_size)
    expected, logits = record(model, images, recorders)
    model.compile()
    compiled, output = record(model, images, recorders)
    torch.testing.assert_close(output, logits, rtol=1e-4, atol=1e-4)
    for source in SOURCES:
        torch.testing.assert_close(compiled[source], expected[source], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tail(compiled['stage3']).logits, logits, rtol=1e-4, atol=1e-4)


def test_recorder_gives_maps_by_default():
    model = build('vit').eval()
    view = describe(model, 32)
    images = torch.randn(2, 3, 32, 32)
    raw, _ = record(model, images, recorders_of(model))
    maps, _ = record(model, images, recorders_of(model, layout='NCHW'))
    torch.testing.assert_close(maps['stage2'], view.stage(2).to_map(raw['stage2']))
    assert isinstance(recorders_of(model)['stage1'], StageOutputsRecorder)
