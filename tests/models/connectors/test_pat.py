"""The connectors of PAT: region-aware attention, and a teacher with feedback prompts."""

import pytest
import torch
from pairs import batch, distillation, step
from torch import nn
from torch.nn import functional as F

from mmkd_tas.errors import SetupError
from mmkd_tas.models.connectors.prompted_teacher import Prompt
from mmkd_tas.stages import Stage


def parts(student='resnet', teacher='vit', **options):
    """A distillation in eval mode, its two connectors, and features of a batch."""
    model = distillation('pat', student, teacher, options).eval()
    regions, prompted = (model.distiller.connectors[name] for name in ('regions', 'prompted'))
    features = [
        [torch.randn(3, *stage.shape) for stage in view.stages]
        for view in (model.student.stage_view, model.teacher.stage_view)
    ]
    return model, regions, prompted, features


def own_features(model, images):
    """What the teacher has at the ends of its stages, and its logits."""
    found = []
    stages = model.teacher.stage_view.stages
    modules = [model.teacher.get_submodule(stage.module) for stage in stages]

    def take(module, args, output):
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(take) for module in modules]
    with torch.no_grad():
        logits = model.teacher(images)
    for handle in handles:
        handle.remove()
    return found, logits


# --- RegionAttention ------------------------------------------------------------------


@pytest.mark.parametrize('student', ['resnet', 'vit'])
@pytest.mark.parametrize('teacher', ['resnet', 'deit_distilled', 'timm_swin'])
def test_regions_have_the_shape_of_the_teachers_stages(student, teacher):
    model, regions, _, (ours, _) = parts(student, teacher)
    for stage, out in zip(model.teacher.stage_view.stages, regions(*ours), strict=True):
        assert out.shape == (3, stage.channels, *stage.grid)


def test_the_attention_of_regions():
    """Head by head and token by token."""
    options = {'connectors.regions.width': 8, 'connectors.regions.num_heads': 2}
    _, regions, _, (ours, _) = parts(**options)
    tokens = torch.cat([e(f) for e, f in zip(regions.embeddings, ours, strict=True)], dim=1)
    assert tokens.shape == (3, 64, 8)
    normed = regions.norm(tokens)
    key, value = regions.key_value(normed).chunk(2, -1)
    query = regions.query(normed)
    codes = regions.position_codes
    assert len({tuple(code.tolist()) for code in codes}) == 64  # every region its own
    assert codes[3, 0] == pytest.approx(torch.tensor(3.0).sin().item())
    assert codes[3, 3] == pytest.approx(torch.tensor(3 / 10000 ** (2 / 8)).cos().item())
    blended = torch.zeros_like(tokens)
    for head in (slice(0, 4), slice(4, 8)):
        for image in range(3):
            scores = (query[image] + codes)[:, head] @ (key[image] + codes)[:, head].T / 2
            blended[image, :, head] = scores.softmax(1) @ value[image][:, head]
    for k, out in enumerate(regions(*ours)):
        grid = blended[:, 16 * k : 16 * k + 16].mT.unflatten(2, (4, 4))
        expected = F.interpolate(regions.aligners[k](grid), out.shape[-2:], mode='bilinear')
        torch.testing.assert_close(out, expected)


def test_an_image_does_not_depend_on_its_place_in_the_batch():
    _, regions, _, (ours, _) = parts()
    forward, backward = regions(*ours), regions(*(f.flip(0) for f in ours))
    for a, b in zip(forward, backward, strict=True):
        torch.testing.assert_close(a, b.flip(0))


# --- PromptedTeacher ------------------------------------------------------------------


TEACHERS = ['resnet', 'convnext', 'vit', 'deit_distilled', 'timm_swin', 'mlp_mixer']


@pytest.mark.parametrize('teacher', TEACHERS)
def test_prompts_of_no_strength_change_nothing(teacher):
    model, regions, prompted, (ours, _) = parts('resnet', teacher)
    images = torch.randn(3, 3, *model.teacher.stage_view.input_size)
    features, logits = own_features(model, images)
    result = prompted(regions(*ours), *features)
    torch.testing.assert_close(result.logits, logits, rtol=1e-4, atol=1e-4)
    for stage, out, own in zip(prompted.stages, result.features, features, strict=True):
        torch.testing.assert_close(out, stage.to_map(own), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('teacher', TEACHERS)
def test_prompts_reach_the_later_stages(teacher):
    model, regions, prompted, (ours, _) = parts('resnet', teacher)
    features, logits = own_features(model, torch.randn(3, 3, *model.teacher.stage_view.input_size))
    hooks = sum(len(m._forward_hooks) for m in model.teacher.modules())
    for k in range(3):
        for prompt in prompted.prompts:
            nn.init.zeros_(prompt.strength)
        nn.init.constant_(prompted.prompts[k].strength, 3.0)
        result = prompted(regions(*ours), *features)
        changed = [
            not torch.allclose(out, stage.to_map(own), rtol=1e-3, atol=1e-3)
            for stage, out, own in zip(prompted.stages, result.features, features, strict=True)
        ]
        assert changed == [number > k for number in range(4)]
        assert not torch.allclose(result.logits, logits, rtol=1e-3, atol=1e-3)
    # What was put into the teacher for it is gone, and nothing is remembered.
    torch.testing.assert_close(prompted(regions(*ours), *features), result)
    assert sum(len(m._forward_hooks) for m in model.teacher.modules()) == hooks
    shorter = prompted([r[:1] for r in regions(*ours)], *(f[:1] for f in features))
    torch.testing.assert_close(shorter.logits, result.logits[:1], rtol=1e-4, atol=1e-4)


def test_a_prompt_leaves_prefix_tokens_alone_and_knows_positions():
    here = Stage('a', 'NLC', prefix=2, channels=8, grid=(2, 3))
    there = Stage('b', 'NCHW', channels=4, grid=(1, 2))
    prompt = Prompt(here, there).eval()
    nn.init.ones_(prompt.strength)
    feature, gap = torch.randn(2, 8, 8), torch.randn(2, 4, 1, 2)
    out = prompt(feature, gap)
    assert torch.equal(out[:, :2], feature[:, :2])
    grid = feature[:, 2:].mT.unflatten(2, (2, 3))
    feedback = F.interpolate(prompt.align(gap), (2, 3), mode='bilinear')
    added = prompt.prompt(prompt.fuse(torch.cat([grid, feedback], 1)))
    torch.testing.assert_close(out[:, 2:], (grid + added).flatten(2).mT)
    assert (added.std((2, 3)) > 0).all()


def test_feedback_is_of_the_same_images():
    """Of the batch that is seen; another student feature changes its own image alone."""
    model, regions, prompted, (ours, _) = parts()
    for prompt in prompted.prompts:
        nn.init.constant_(prompt.strength, 3.0)
    size = model.teacher.stage_view.input_size
    features, _ = own_features(model, torch.randn(3, 3, *size))
    before = prompted(regions(*ours), *features).logits
    for feature in ours:
        feature[1] += 1
    after = prompted(regions(*ours), *features).logits
    changed = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True)]
    assert changed == [False, True, False]


def test_gradients_of_the_terms():
    model, *_ = parts()
    model.train()
    for prompt in model.distiller.connectors['prompted'].prompts:
        nn.init.constant_(prompt.strength, 0.1)

    def learned(name):
        model.zero_grad()
        model(*batch(model), mode='loss')[f'distill.loss_{name}'].backward()
        return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    features, prompts = learned('features'), learned('prompts')
    assert any(name.startswith('architecture.') for name in features)
    for names in (features, prompts):
        assert any('prompted.prompts.2' in name for name in names)
    # The feedback is no way for the student to change its teacher.
    assert not any(name.startswith('architecture.') or 'regions' in name for name in prompts)


def test_no_teacher_in_the_checkpoint():
    model, *_ = parts()
    assert not any('teacher' in key or 'view' in key for key in model.state_dict())
    owned = {id(p) for p in model.parameters()}
    assert not owned & {id(p) for p in model.teacher.parameters()}


def test_two_steps():
    model = distillation('pat', 'vit', 'timm_swin').train()
    step(model, *batch(model))
    strength = [p for n, p in model.named_parameters() if n.endswith('strength')]
    assert all(value != 0 for value in strength)
    step(model, *batch(model, images=3))
    without = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    assert not [n for n in without if 'distiller' in n and 'bias' not in n]


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'connectors.regions.width': 12}, 'width=12 .* num_heads=8'),
        ({'connectors.regions.inputs': ['teacher.stage1']}, 'stages of the student'),
        ({'connectors.prompted.inputs': ['regions', 'teacher.stage4']}, r'teacher\.stage1'),
    ],
)
def test_mistakes(options, sentence):
    with pytest.raises(SetupError, match=sentence):
        distillation('pat', 'resnet', 'vit', options)
