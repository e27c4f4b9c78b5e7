"""What makes a training faster or smaller changes nothing else."""

import copy

import pytest
import torch
from helpers import sampled
from mmengine.config import Config
from mmengine.registry import MODELS
from pairs import batch, distillation, total
from torch._inductor.cudagraph_trees import MarkStepBox
from zoo import ZOO

from mmkd_tas.errors import SetupError

PAIRS = [
    ('resnet', 'vit'),
    ('vit', 'resnet'),
    ('mlp_mixer', 'timm_swin'),
    ('convnext', 'deit_distilled'),
]


def is_tas(index, method):
    """TAS records and replays most: the quick cases are its."""
    return method == 'tas'


def gradients(model, data, precision=None):
    """Return losses and gradients of one step in evaluation mode (without dropout)."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    device = data[0].device.type
    with torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None):
        losses = model(*data, mode='loss')
    total(losses).backward()
    return (
        {name: value.detach() for name, value in losses.items()},
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
    )


def compared(method, student, teacher, device='cpu', **options):
    """Return losses and gradients of a plain distillation, and of one with options."""
    results, weights, data = [], None, None
    for keys in ({}, options):
        model = distillation(method, student, teacher, **keys).to(device)
        if weights is None:
            weights = [copy.deepcopy(m.state_dict()) for m in (model, model.teacher)]
            data = batch(model)
        for part, state in zip((model, model.teacher), weights, strict=True):
            part.load_state_dict(state)
        results.append(gradients(model.train(), data))
    return results


def assert_alike(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
    for name, value in expected[0].items():
        if not name.endswith('acc'):
            torch.testing.assert_close(found[0][name], value, rtol=tolerance, atol=tolerance)
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for _, grads in (found, expected))
    assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize('method', sampled(['kd', 'ofa', 'tas', 'hcd'], is_tas))
@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
def test_channels_last(method, student, teacher, device):
    plain, fast = compared(method, student, teacher, device, channels_last=True)
    assert_alike(fast, plain, 1e-3)


def test_the_memory_format_reaches_the_convolutions():
    for wanted in (False, True):
        model = distillation('kd', 'resnet', 'convnext', channels_last=wanted).train()
        found = []

        def look(module, args, found=found):
            for tensor in (args[0], module.weight):
                found.append(tensor.is_contiguous(memory_format=torch.channels_last))

        for part in (model.student, model.teacher):
            for module in part.modules():
                if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                    module.register_forward_pre_hook(look)
        model(*batch(model), mode='loss')
        assert found
        assert all(found) if wanted else not any(found)


@pytest.mark.parametrize('method', sampled(['kd', 'tas'], is_tas))
@pytest.mark.parametrize(('student', 'teacher'), sampled(PAIRS, lambda i, _: i < 2))
def test_compiled(method, student, teacher, device):
    options = dict(backend='aot_eager')
    plain, fast = compared(
        method, student, teacher, device, student_compile=options, teacher_compile=options
    )
    assert_alike(fast, plain, 1e-3)


@pytest.mark.parametrize('compiled', ['student_compile', 'teacher_compile', None])
def test_a_step_of_compiled_parts_is_told_to_cuda_graphs(compiled):
    """Else they would write over what is recorded, as soon as the next part runs."""
    options = {compiled: dict(backend='eager')} if compiled else {}
    model = distillation('tas', 'resnet', 'vit', **options)
    data, steps = batch(model), []
    for mode in ('loss', 'loss', 'predict'):
        model(*data, mode=mode)
        steps.append(MarkStepBox.mark_step_counter)
    begun = -1 if compiled else 0
    assert steps[1] - steps[0] == steps[2] - steps[1] == begun


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('mode', ['reduce-overhead', 'max-autotune'])
@pytest.mark.parametrize('method', ['ofa', 'tas'])
def test_cuda_graphs(method, mode):
    """Several steps: the first ones only record the graphs."""
    models = [
        distillation(method, 'resnet', 'vit', student_compile=options, teacher_compile=options)
        for options in (False, dict(mode=mode))
    ]
    models[1].load_state_dict(models[0].state_dict())
    models[1].teacher.load_state_dict(models[0].teacher.state_dict())
    data = batch(models[0].cuda())
    models[1].cuda()
    for _ in range(5):
        plain, graphs = (gradients(model.train(), data) for model in models)
        assert_alike(graphs, plain, 1e-2)
        for model in models:
            model.zero_grad()


def test_a_tail_runs_without_what_is_compiled():
    """Compiled code does not know of the replay, and would be compiled anew for each."""
    model = distillation('tas', 'resnet', 'vit', teacher_compile=dict(backend='aot_eager'))
    tail = model.distiller.connectors['assistant'].tail
    compiled = [m for m in model.teacher.modules() if m._compiled_call_impl is not None]
    assert compiled
    with tail._replaying(torch.zeros(1, *tail.stage.shape), own_prefix=False):
        assert all(m._compiled_call_impl is None for m in compiled)
    assert all(m._compiled_call_impl is not None for m in compiled)


def test_what_is_compiled():
    model = distillation('tas', 'resnet', 'vit', teacher_compile=True, student_compile=True)
    for part in (model.student, model.teacher):
        compiled = [m for m in part.modules() if m._compiled_call_impl is not None]
        assert compiled
        hooked = [m for m in part.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert hooked
        assert not {*hooked} & {m for c in compiled for m in c.modules()}
    copied = copy.deepcopy(model)  # as for averaged weights: it must not run the original's code
    assert not any(m._compiled_call_impl for m in copied.student.modules())


@pytest.mark.parametrize('precision', ['bfloat16', 'float32'])
@pytest.mark.parametrize(('student', 'teacher'), PAIRS[:2])
@pytest.mark.parametrize('method', sampled(['ofa', 'tas', 'rsd'], is_tas))
def test_the_precision_of_the_teacher(method, student, teacher, precision, device):
    plain, fast = compared(method, student, teacher, device, teacher_precision=precision)
    assert_alike(fast, plain, 0.1 if precision == 'bfloat16' else 0)
    assert all(value.dtype == torch.float32 for value in fast[0].values())
    if precision == 'bfloat16':
        assert any((fast[0][name] != value).any() for name, value in plain[0].items())


def test_unknown_precision():
    with pytest.raises(SetupError, match="teacher_precision: 'fp8' is not one of 'bfloat16'"):
        distillation('kd', 'resnet', 'vit', teacher_precision='fp8')


@pytest.mark.parametrize('method', sampled(['kd', 'ofa', 'tas', 'hcd', 'rsd'], is_tas))
@pytest.mark.parametrize('teacher', ['resnet', 'timm_swin'])
@pytest.mark.parametrize(
    'student',
    [
        dict(type='TimmClassifier', model_name='test_vit', img_size=64, num_classes=5),
        dict(type='TimmClassifier', model_name='test_convnext', num_classes=5),
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='SwinTransformer',
                arch=dict(embed_dims=16, depths=[1] * 4, num_heads=[1] * 4),
                img_size=64,
                window_size=2,
                drop_path_rate=0.0,
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', in_channels=128, num_classes=5),
        ),
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', in_channels=512, num_classes=5),
        ),
    ],
    ids=['timm-vit', 'timm-convnext', 'swin', 'resnet'],
)
def test_gradient_checkpointing(method, student, teacher):
    """Recomputed in the backward pass: mmpretrain's and timm's ``with_cp``."""
    distiller = Config.fromfile(f'configs/_base_/methods/{method}.py').distiller
    results, states = [], None
    for with_cp in (False, True):
        architecture = copy.deepcopy(student)
        (architecture if 'model_name' in student else architecture['backbone'])['with_cp'] = with_cp
        model = MODELS.build(
            dict(
                type='mmkd_tas.CrossArchDistill',
                random_teacher=True,
                architecture=architecture,
                teacher={**copy.deepcopy(ZOO[teacher].cfg)},
                distiller=distiller,
                input_size=64,
                teacher_input=dict(size=ZOO[teacher].size),
                data_preprocessor=dict(num_classes=5),
            )
        )
        if states is None:
            model.student.init_weights()
            states = [copy.deepcopy(m.state_dict()) for m in (model, model.teacher)]
            data = batch(model)
        for part, state in zip((model, model.teacher), states, strict=True):
            part.load_state_dict(state)
        results.append(gradients(model.train(), data))
    assert_alike(results[1], results[0], 1e-5)
