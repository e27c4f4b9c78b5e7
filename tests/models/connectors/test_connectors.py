import pytest
import torch
from helpers import REPO
from mmengine.config import Config
from mmengine.registry import MODELS
from pairs import batch, distillation, step
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from zoo import ZOO

from mmkd_tas.configs import set_num_classes
from mmkd_tas.errors import SetupError
from mmkd_tas.models.connectors.blocks import ClassBlock, ConvPool, LocalToGlobal, TokenPool
from mmkd_tas.stages import Stage, describe


def view_of(name):
    return describe(MODELS.build(ZOO[name].cfg), ZOO[name].size)


def connector(kind, student, teacher, stages=(), **keys):
    views = dict(student=student, teacher=teacher)
    return MODELS.build(dict(type=f'mmkd_tas.{kind}', stages=list(stages), **views, **keys))


def conv_strides(module):
    return [m.stride[0] for m in module.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


# --- ExitBranch -------------------------------------------------------------------


def test_exits_of_maps():
    student, teacher = view_of('resnet'), view_of('vit')
    exits = connector('ExitBranch', student, teacher, student.stages)
    for number, branch in enumerate(exits.branches, 1):
        assert isinstance(branch[0], ConvPool)
        assert conv_strides(branch).count(2) == 4 - number
        assert branch[0].width == max(student.width, teacher.width) == branch[1].in_features
    wider = view_of('mobilenet_v2')
    exits_of_wider = connector('ExitBranch', student, wider, student.stages)
    assert {branch[0].width for branch in exits_of_wider.branches} == {wider.width}
    features = [torch.randn(3, *stage.shape) for stage in student.stages]
    logits = exits(*features)
    assert [z.shape for z in logits] == [(3, 5)] * 4
    # Doubling: the widths of the pointwise convolutions of the first branch.
    wide = [m.out_channels for m in exits.branches[0].modules() if isinstance(m, nn.Conv2d)]
    assert wide == [8, 8, 8, 16, 16, 16, 16, 32, 32, 32, 32, 64]


@pytest.mark.parametrize(('name', 'prefix'), [('vit', 1), ('mlp_mixer', 0), ('timm_swin', 0)])
def test_exits_of_tokens(name, prefix):
    student, teacher = view_of(name), view_of('resnet')
    exits = connector('ExitBranch', student, teacher, student.stages)
    for stage, branch, depth in zip(student.stages, exits.branches, (3, 2, 1, 1), strict=True):
        assert isinstance(branch[0], TokenPool)
        assert stage.prefix == prefix
        assert len(branch[0].blocks) == depth
        assert branch[1].in_features == student.width
    features = [torch.randn(3, *stage.shape) for stage in student.stages]
    assert [z.shape for z in exits(*features)] == [(3, 5)] * 4


@pytest.mark.parametrize(
    ('student', 'teacher_width', 'parameters'),
    [
        ('cnn/resnet18', 768, 1_626_256),  # Swin-T
        ('cnn/resnet18', 384, 1_194_384),  # ViT-S
        ('cnn/mobilenetv2', 768, 2_529_296),
        ('token/deit-t', 768, 3_783_184),
        ('token/swin-p', 768, 14_864_656),
        ('token/swin-n', 768, 26_340_240),
        ('token/resmlp-s12', 768, 14_938_768),
    ],
)
def test_exits_have_as_many_parameters_as_the_authors(student, teacher_width, parameters):
    """As counted with the official code of OFA-KD, on timm 0.6.5, for 100 classes."""
    file = REPO / f'configs/_base_/models/{student}.py'
    (cfg,) = Config.fromfile(file).to_dict().values()
    arch = dict(embed_dims=teacher_width, num_layers=4, num_heads=4, feedforward_channels=8)
    teacher = dict(type='VisionTransformer', arch=arch, img_size=32, out_type='avg_featmap')
    head = dict(type='LinearClsHead', in_channels=teacher_width, num_classes=100)
    teacher = dict(type='ImageClassifier', backbone=teacher, head=head)
    set_num_classes(cfg, 100)
    student, teacher = describe(MODELS.build(cfg), 224), describe(MODELS.build(teacher), 32)
    exits = connector('ExitBranch', student, teacher, student.stages)
    assert sum(p.numel() for p in exits.parameters()) == parameters


def test_tokens_are_merged_down_to_about_7_by_7():
    for side, merges in ((7, 0), (8, 0), (14, 1), (28, 2), (56, 3), (13, 0)):
        pool = TokenPool(Stage('x', 'NLC', 1, 16, (side, side)), 1, 32, num_heads=4)
        assert len([m for m in pool.merges if not isinstance(m, nn.Linear)]) == merges
        assert pool(torch.randn(2, side * side + 1, 16)).shape == (2, 32)
        gelus = [m for m in pool.merges.modules() if isinstance(m, nn.GELU)]
        assert len(gelus) == (merges if merges < 2 else merges - 1)
        if merges:
            assert {
                m.reduction.out_features for m in pool.merges.modules() if hasattr(m, 'reduction')
            } == {32}
    grid = TokenPool(Stage('x', 'NHWC', 0, 16, (14, 20)), 1, 30, num_heads=4)
    assert grid(torch.randn(2, 14, 20, 16)).shape == (2, 30)


def test_the_class_token_is_what_counts():
    stage = Stage('x', 'NLC', 1, 16, (8, 8))
    pool = TokenPool(stage, 1, 16, num_heads=4)
    pool.blocks = nn.Identity()
    feature = torch.randn(2, 65, 16)
    assert torch.equal(pool(feature), feature[:, 0])
    plain = TokenPool(Stage('x', 'NLC', 0, 16, (8, 8)), 1, 16, num_heads=4)
    plain.blocks = nn.Identity()
    torch.testing.assert_close(plain(feature[:, 1:]), feature[:, 1:].mean(1))


def test_a_block_for_the_class_token_alone():
    block, short = Block(16, 4).double(), ClassBlock(16, 4).double()
    weights = block.state_dict()
    for kind in ('weight', 'bias'):
        nn.init.normal_(weights[f'norm1.{kind}'])
        nn.init.normal_(weights[f'norm2.{kind}'])
    for name, part in zip('qkv', weights.pop('attn.qkv.weight').chunk(3), strict=True):
        weights[f'attn.{name}.weight'] = part
    short.load_state_dict(weights)
    tokens = torch.randn(3, 1 + 9, 16, dtype=torch.float64)
    torch.testing.assert_close(short(tokens)[:, 0], block(tokens)[:, 0])


def test_initial_weights():
    student, teacher = view_of('vit'), view_of('resnet')
    torch.manual_seed(0)
    exits = connector('ExitBranch', student, teacher, student.stages)
    exits.init_weights()
    assistant = connector('HybridAssistant', student, teacher)
    assistant.init_weights()
    of_a_distiller = distillation('ofa', 'vit', 'resnet').distiller.connectors['exits']
    for new in (exits, assistant, of_a_distiller):
        weights = [m.weight.flatten() for m in new.modules() if isinstance(m, nn.Linear)]
        assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.1)


def test_some_exits_only():
    model = distillation(
        'ofa', 'resnet', 'vit', {'connectors.exits.inputs': ['student.stage2', 'student.stage4']}
    )
    assert len(model.distiller.connectors['exits'].branches) == 2
    step(model, *batch(model))
    with pytest.raises(SetupError, match='is not a stage of the student'):
        distillation('ofa', 'resnet', 'vit', {'connectors.exits.inputs': ['teacher.stage2']})


# --- HybridAssistant ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('student', 'teacher', 'first'),
    [
        ('resnet', 'vit', 'student'),
        ('resnet', 'mlp_mixer', 'student'),
        ('vit', 'resnet', 'teacher'),
        ('mlp_mixer', 'convnext', 'teacher'),
        ('vit', 'mlp_mixer', 'student'),
        ('mlp_mixer', 'vit', 'student'),
        ('resnet', 'mobilenet_v2', 'student'),
        ('vit', 'timm_swin', 'student'),
        ('timm_swin', 'resnet', 'teacher'),
        ('resnet', 'timm_swin', 'student'),
    ],
)
def test_who_gives_the_first_stages(student, teacher, first):
    views = {'student': view_of(student), 'teacher': view_of(teacher)}
    assistant = connector('HybridAssistant', **views)
    last = views['teacher' if first == 'student' else 'student']
    assert assistant.inputs == (f'{first}.stage3',)
    assert assistant.tail.stage == last.stage(3)
    known = assistant(torch.randn(2, *views[first].stage(3).shape))
    assert known.pooled.shape == (2, last.width)
    assert known.logits.shape == (2, 5)
    assert known.feature.shape == (2, *last.stages[-1].shape)


@pytest.mark.parametrize('split', [1, 2, 3])
@pytest.mark.parametrize(('student', 'teacher'), [('resnet', 'vit'), ('timm_swin', 'resnet')])
@pytest.mark.parametrize('first', ['student', 'teacher'])
def test_any_split_either_way_round(student, teacher, split, first):
    options = {'connectors.assistant.split': split, 'connectors.assistant.first': first}
    model = distillation('tas', student, teacher, options)
    assert model.distiller.connectors['assistant'].inputs == (f'{first}.stage{split}',)
    step(model.train(), *batch(model))


def test_the_assistant_is_the_composition_that_it_says():
    """Replay it by hand, for a CNN and a class-token transformer of mmpretrain."""
    student, teacher = view_of('resnet'), view_of('vit')
    assistant = connector('HybridAssistant', student, teacher).eval()
    feature = torch.randn(2, *student.stage(3).shape)
    known = assistant(feature)
    vit = teacher.model.eval()
    tokens = assistant.projector(feature)
    assert tokens.shape == (2, 16, 24)
    cls = vit.backbone.cls_token + vit.backbone.pos_embed[:, :1]
    tokens = torch.cat([cls.expand(2, -1, -1), tokens], dim=1)
    number = int(teacher.stage(3).module.rpartition('.')[2])
    for block in vit.backbone.layers[number + 1 :]:
        tokens = block(tokens)
    pooled = vit.backbone.ln1(tokens)[:, 0]
    torch.testing.assert_close(known.pooled, pooled)
    torch.testing.assert_close(known.logits, vit.head.layers.head(pooled))


@pytest.mark.parametrize(
    ('source', 'target'),
    [
        ((14, 14), (14, 14)),
        ((28, 28), (14, 14)),
        ((4, 4), (7, 7)),
        ((15, 22), (7, 11)),
        ((8, 8), (1, 1)),
    ],
)
@pytest.mark.parametrize('layout', ['NCHW', 'NHWC', 'NLC', 'NCL'])
def test_projector_between_any_grids(source, target, layout):
    stage = Stage('x', layout, channels=6, grid=source)
    other = Stage('y', 'NLC', prefix=1, channels=40, grid=target)
    projector = LocalToGlobal(stage, other)
    tokens = projector(torch.randn(2, *stage.shape))
    assert tokens.shape == (2, other.tokens, 40)


@pytest.mark.parametrize('block', ['swin', 'bottleneck', 'conv'])
def test_the_projector_sees_every_position_and_wider_than_a_patch(block):
    stage = Stage('x', 'NCHW', channels=4, grid=(15, 15))
    projector = LocalToGlobal(stage, Stage('y', 'NLC', channels=8, grid=(7, 7)), block=block)
    feature = torch.randn(1, 4, 15, 15, requires_grad=True)
    projector(feature)[0, 24].sum().backward()  # the middle token
    assert (feature.grad != 0).any(1).all()


def test_what_the_bottleneck_adds_does_not_grow_with_its_first_product():
    """Two products in a row, one of them free to grow, made a training with SGD diverge."""
    stage = Stage('x', 'NCHW', channels=4, grid=(7, 7))
    projector = LocalToGlobal(stage, Stage('y', 'NLC', channels=32, grid=(7, 7)))
    feature = torch.randn(2, 4, 7, 7)
    before = projector(feature)
    with torch.no_grad():
        projector.block[0].weight *= 1000
    assert projector(feature).std() < 3 * before.std()


def test_what_the_blocks_of_the_projector_cost():
    stage = Stage('x', 'NCHW', channels=4, grid=(14, 14))
    target = Stage('y', 'NLC', channels=64, grid=(14, 14))
    costs = {}
    for block in ('swin', 'bottleneck', 'conv', 'none'):
        projector = LocalToGlobal(stage, target, block=block)
        with FlopCounterMode(display=False) as flops:
            projector(torch.randn(1, *stage.shape))
        # in multiplications of a product of the width with itself, for each token
        costs[block] = flops.get_total_flops() / (2 * 196 * 64**2)
    extra = {block: cost - costs['none'] for block, cost in costs.items()}
    assert 12 < extra['swin'] < 14  # attention within the windows adds to 12
    assert 1.2 < extra['bottleneck'] < 1.7
    assert extra['conv'] < 1.3


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(split=4), 'split=4 is not between 1 and 3'),
        (dict(split=0), 'split=0'),
        (dict(first='both'), "first='both' is neither"),
        (dict(block='vit'), "block='vit' is not one of swin, bottleneck, conv, none"),
    ],
)
def test_mistakes_in_the_assistant(options, sentence):
    with pytest.raises(SetupError, match=sentence):
        connector('HybridAssistant', view_of('resnet'), view_of('vit'), **options)


# --- PairProjector --------------------------------------------------------------------


def test_pairs_of_pooled_features():
    student, teacher = view_of('resnet'), view_of('vit')
    stages = student.source('pooled'), teacher.source('pooled')
    ours, theirs = torch.randn(3, 64), torch.randn(3, 24)
    pair = connector('PairProjector', student, teacher, stages)
    learner, target = pair(ours, theirs)
    assert learner.shape == (3, 24)
    assert torch.equal(target, theirs)
    learner, target = connector('PairProjector', student, teacher, stages, width=8)(ours, theirs)
    assert learner.shape == target.shape == (3, 8)
    same = connector('PairProjector', student, teacher, [stages[1]] * 2)
    assert not list(same.parameters())
    assert torch.equal(same(theirs, theirs).learner, theirs)


@pytest.mark.parametrize('detach', [True, False])
def test_the_targets_projection_learns_where_the_loss_lets_it(detach):
    """DDP waits for the gradient of every parameter that could have one."""
    options = {f'connectors.{n}.width': 8 for n in ('teacher_student', 'teacher_assistant')}
    options |= {f'distill_losses.loss_{n}_features.detach_target': detach for n in ('ts', 'ta')}
    model = distillation('tas', 'resnet', 'vit', options).train()
    step(model, *batch(model))
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in parameters)
    for name in ('teacher_student', 'teacher_assistant'):
        learner, target = model.distiller.connectors[name].projections
        assert learner.weight.grad.any()
        assert target.weight.requires_grad is not detach
        assert detach or target.weight.grad.any()


def test_pairs_of_maps():
    student, teacher = view_of('resnet'), view_of('vit')
    stages = student.stage(3), teacher.stage(3)
    ours, theirs = (torch.randn(3, *stage.shape) for stage in stages)
    pair = connector('PairProjector', student, teacher, stages, pool=2)
    learner, target = pair(ours, theirs)
    assert learner.shape == target.shape == (3, 4, 24)
    # The first region of four: the upper left quarter of the map, without the class token.
    quarter = theirs[:, 1:].unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))
    torch.testing.assert_close(target[:, 0], quarter)
    whole = connector('PairProjector', student, teacher, stages)
    torch.testing.assert_close(whole(ours, theirs).target, theirs[:, 1:].mean(1))


def test_regions_in_the_whole_method():
    pairs = ('teacher_student', 'student', 'teacher'), ('teacher_assistant', 'assistant', 'teacher')
    last = dict(student='student.stage4', teacher='teacher.stage4', assistant='assistant.feature')
    options = {}
    for name, learner, target in (*pairs, ('assistant_student', 'student', 'assistant')):
        options[f'connectors.{name}.inputs'] = [last[learner], last[target]]
        options[f'connectors.{name}.pool'] = 2
    model = distillation('tas', 'resnet', 'vit', options)
    step(model.train(), *batch(model))


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'connectors.teacher_student.pool': 2}, 'have positions'),
        ({'connectors.teacher_student.inputs': ['student.pooled']}, 'two features'),
        ({'connectors.teacher_student.inputs': ['student.pooled', 'student.labels']}, 'number 2'),
        ({'connectors.teacher_student.inputs': ['student.pooled', 'assistant.x']}, 'number 2'),
    ],
)
def test_mistakes_in_pairs(options, sentence):
    with pytest.raises(SetupError, match=sentence):
        distillation('tas', 'resnet', 'vit', options)


def test_projections_learn():
    model = distillation('tas', 'resnet', 'vit')
    step(model.train(), *batch(model))
    projection = model.distiller.connectors['teacher_student'].projections[0]
    assert projection.weight.grad.any()
    assert F.linear(torch.randn(1, 64), projection.weight).shape == (1, 24)


# --- StageRegressor -------------------------------------------------------------------


@pytest.mark.parametrize('student', ['resnet', 'vit', 'timm_swin'])
@pytest.mark.parametrize('teacher', ['resnet', 'deit_distilled', 'timm_swin'])
def test_regressors_have_the_shape_of_the_teachers_stages(student, teacher):
    student, teacher = view_of(student), view_of(teacher)
    regressor = connector('StageRegressor', student, teacher, [*student.stages, *teacher.stages])
    features = [torch.randn(2, *s.shape) for s in (*student.stages, *teacher.stages)]
    pair = regressor(*features)
    for stage, ours, theirs, feature in zip(
        teacher.stages, pair.learner, pair.target, features[4:], strict=True
    ):
        assert ours.shape == theirs.shape == (2, stage.channels, *stage.grid)
        assert torch.equal(stage.to_map(feature), theirs)


def test_a_regressor_sees_the_patch_where_the_teacher_has_a_token():
    student, teacher = view_of('resnet'), view_of('vit')
    source, target = student.stage(1), teacher.stage(1)
    assert [a // b for a, b in zip(source.grid, target.grid, strict=True)] == [4, 4]
    regressor = connector('StageRegressor', student, teacher, [source, target])
    feature = torch.randn(1, *source.shape)
    other = feature.clone()
    other[..., :4, 4:8] += 1  # the second patch of the first row
    changed = (regressor(feature, torch.zeros(1, *target.shape)).learner[0][0]).sub(
        regressor(other, torch.zeros(1, *target.shape)).learner[0][0]
    )
    assert changed.any(0).nonzero().tolist() == [[0, 1]]


def test_mistakes_in_regressors():
    for inputs in (['student.stage4'], ['student.stage4', 'teacher.stage3', 'teacher.stage4']):
        with pytest.raises(SetupError, match=rf'{len(inputs)} inputs do not make pairs'):
            distillation('fitnet', 'resnet', 'vit', {'connectors.regressors.inputs': inputs})


# --- ComplementaryFeatureMapper and Decoupler -------------------------------------------


@pytest.mark.parametrize('name', ['resnet', 'vit'])
def test_sub_logits_are_those_of_a_loop(name):
    student, teacher = view_of(name), view_of('mlp_mixer')
    stages = [*student.stages, teacher.source('pooled')]
    mapper = connector('ComplementaryFeatureMapper', student, teacher, stages, num_sub_logits=3)
    mapper.eval()
    assert mapper.inner.bias.shape == (4, 1, teacher.width)
    features = [torch.randn(2, *stage.shape) for stage in stages]
    sub_logits = mapper(*features)
    assert sub_logits.shape == (4, 2, 3, 5)
    for k, (pool, feature) in enumerate(zip(mapper.pools, features[:-1], strict=True)):
        joined = torch.cat([pool(feature), features[-1]], dim=1)
        hidden = F.relu(joined @ mapper.inner.weight[k] + mapper.inner.bias[k])
        expected = hidden @ mapper.outer.weight[k] + mapper.outer.bias[k]
        torch.testing.assert_close(sub_logits[k], expected.view(2, 3, 5))


def test_the_stages_of_the_mapper_are_the_configs():
    inputs = ['student.stage4', 'teacher.pooled']
    model = distillation('hcd', 'resnet', 'vit', {'connectors.mapper.inputs': inputs})
    assert len(model.distiller.connectors['mapper'].pools) == 1
    step(model.train(), *batch(model))


def test_decoupler():
    student, teacher = view_of('resnet'), view_of('vit')
    stages = student.source('pooled'), teacher.source('pooled')
    decoupler = connector('Decoupler', student, teacher, stages)
    assert [m.out_features for m in decoupler.modules() if isinstance(m, nn.Linear)] == [128, 24]
    wider = connector('Decoupler', student, teacher, stages, expansion=3)
    assert wider.layers[0].out_features == 192
    assert decoupler(torch.randn(3, 64), torch.randn(3, 24)).shape == (3, 24)
    with pytest.raises(SetupError, match=r'student\.pooled'):
        connector('Decoupler', student, teacher, [student.stage(4), stages[1]])


def test_redundancy_suppression_of_logits_needs_no_decoupler():
    mapping = dict(preds_S='student.logits', preds_T='teacher.logits')
    model = distillation('rsd', 'resnet', 'vit', {'loss_forward_mappings.loss_rsd': mapping})
    losses = model(*batch(model), mode='loss')
    assert losses['distill.loss_rsd'].isfinite()
