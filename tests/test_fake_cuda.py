"""Every method on a GPU that is not there: devices and types of all that a step computes."""

import contextlib

import pytest
import torch
from fake_cuda import batch_on, empty_on, fake_cuda, on_meta
from helpers import REPO
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope
from pairs import batch, distillation, total
from torch import nn
from zoo import CLASSES, ZOO

from mmkd_tas.models import losses

STAGES = ('ofa', 'tas', 'hcd', 'fitnet', 'pat')
OTHERS = sorted({f.stem for f in (REPO / 'configs/_base_/methods').glob('*.py')} - {*STAGES})
# one of every kind
PAIRS = [('resnet', 'vit'), ('timm_swin', 'convnext'), ('mlp_mixer', 'resnet')]
MORE_PAIRS = [('deit_distilled', 'timm_resmlp'), ('convnext', 'timm_swin')]
CELLS = [
    *((method, *pair) for method in STAGES for pair in PAIRS),
    *((method, *(PAIRS + MORE_PAIRS)[i % 5]) for i, method in enumerate(OTHERS)),
]


def built(method, student, teacher, **keys):
    """Build a distillation in which every part has something to do."""
    return distillation(
        method,
        student,
        teacher,
        teacher_input=dict(size=ZOO[teacher].size, mean=[127.5] * 3, std=[127.5] * 3),
        data_preprocessor=dict(num_classes=CLASSES, mean=[120.0] * 3, std=[60.0] * 3),
        **keys,
    ).train()


def on_cuda(model):
    """Move a distillation, as ``model.to('cuda')`` does."""
    model._apply(empty_on('cuda'))
    model.data_preprocessor._device = torch.device('cuda')
    return model


def losses_on_cuda(model, data, precision=None):
    """Take a step up to the losses, from the loader's images on the CPU to what is logged."""
    images, samples = batch_on('cpu', data)
    images = images.to(torch.uint8).pin_memory()
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)
    with torch.autocast('cuda', precision or torch.float16, enabled=precision is not None):
        found = model(**data, mode='loss')
    for name, value in found.items():
        assert value.device.type == 'cuda', name
        assert value.dtype == torch.float32, name
    _, logged = model.parse_losses(found)
    hub = MessageHub('fake_cuda')
    for name, value in logged.items():
        hub.update_scalar(f'train/{name}', value)
    return found


@pytest.mark.parametrize(('method', 'student', 'teacher'), CELLS)
def test_a_step(method, student, teacher):
    model = built(method, student, teacher)
    data = batch(model)
    model._apply(empty_on('meta'))
    with on_meta():
        total(model(*batch_on('meta', data), mode='loss')).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with fake_cuda():
        on_cuda(model)
        for precision in (None, torch.float16, torch.bfloat16):
            assert losses_on_cuda(model, data, precision)


def test_every_loss_is_among_them():
    configs = [Config.fromfile(REPO / f'configs/_base_/methods/{cell[0]}.py') for cell in CELLS]
    found = {loss.type for config in configs for loss in config.distiller.distill_losses.values()}
    assert {f'mmkd_tas.{name}' for name in losses.__all__} <= found


@pytest.mark.parametrize(('student', 'teacher'), [('resnet', 'timm_swin'), ('vit', 'convnext')])
def test_channels_last(student, teacher):
    model = built('tas', student, teacher, channels_last=True)
    data = batch(model)
    with fake_cuda():
        on_cuda(model)
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] > 1]
        assert any(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)
        losses_on_cuda(model, data, torch.float16)


@pytest.mark.parametrize('precision', ['float16', 'bfloat16', 'float32'])
def test_the_precision_of_the_teacher(precision):
    model = built('tas', 'resnet', 'vit', teacher_precision=precision)
    data = batch(model)
    with fake_cuda():
        losses_on_cuda(on_cuda(model), data, torch.bfloat16)
        assert model.effective_precision(torch.device('cuda')) == getattr(torch, precision)


@pytest.mark.parametrize('method', ['kd', 'rsd'])
def test_replay_of_a_cache(method, tmp_path):
    model = built(method, 'resnet', 'vit', teacher_cache=dict(path=str(tmp_path / 'cache')))
    images, samples = batch(model)
    model.teacher_cache.open(len(samples), {})
    for slot, sample in enumerate(samples):
        sample.set_field(slot, 'cache_slot', field_type='metainfo')
    expected = total(model(images, samples, mode='loss'))  # fills it
    known = model.teacher_cache.store.read([*range(len(samples))])
    assert not known['missing']
    with fake_cuda():
        # what a worker of the loader has read
        known.update({name: empty_on('cpu')(known[name]) for name in ('logits', 'pooled')})
        model.teacher_cache.answers = known
        model.teacher.forward = None  # it does not run
        found = total(losses_on_cuda(on_cuda(model), (images, samples)))
    assert found.shape == expected.shape


def test_a_loss_of_mmpretrain_that_makes_one_hot_vectors():
    loss = MODELS.build(dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'))
    with fake_cuda():
        labels = torch.zeros(4, dtype=torch.int64, device='cuda')
        assert loss(torch.zeros(4, CLASSES, device='cuda'), labels).device.type == 'cuda'
    with pytest.raises(RuntimeError, match='smaller than num_classes'):  # on a CPU, as before
        loss(torch.zeros(4, CLASSES), torch.full((4,), CLASSES))


# --- faults that are planted are found ------------------------------------------------


class Planted(nn.Module):
    """A loss with a fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.weights = torch.ones(CLASSES)  # to be a buffer

    def forward(self, preds_S, preds_T):  # noqa: N803
        return self.fault(self, preds_S).mean()


FAULTS = {
    'arange': (lambda self, x: x * torch.arange(CLASSES), 'device'),
    'eye': (lambda self, x: x @ torch.eye(CLASSES), 'device'),
    'attribute': (lambda self, x: x * self.weights, 'FakeTensor'),
    'tensor': (lambda self, x: x * torch.tensor([1.0] * CLASSES, device=x.device), 'waits for'),
    'index': (lambda self, x: x[torch.arange(2)], 'waits for'),
    'to the CPU': (lambda self, x: x.cpu(), 'waits for'),
    'item': (lambda self, x: x * x.sum().item(), 'local_scalar_dense'),
    'if': (lambda self, x: x if x.sum() > 0 else -x, 'local_scalar_dense'),
    'list': (lambda self, x: x * sum(x[0].tolist()), 'local_scalar_dense'),
    'mask': (lambda self, x: x[x > 0], 'nonzero'),
}


@pytest.fixture(scope='module')
def moved():
    """A distillation on the GPU, its data, and the mode that its tensors belong to."""
    init_default_scope('mmpretrain')
    model = built('kd', 'resnet', 'vit')
    data = batch(model)
    with fake_cuda() as mode:
        return on_cuda(model), data, mode


@pytest.mark.parametrize('name', [None, *FAULTS])
def test_a_planted_fault_is_found(moved, name):
    model, data, mode = moved
    fault, message = FAULTS.get(name, (lambda self, x: x, None))
    model.distiller.distill_losses['loss_kd'] = Planted(fault)
    expected = pytest.raises(Exception, match=message) if name else contextlib.nullcontext()
    with fake_cuda(mode), expected:
        losses_on_cuda(model, data)
