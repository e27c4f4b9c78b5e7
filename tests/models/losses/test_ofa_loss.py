import math

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn import functional as F

from mmkd_tas.errors import SetupError
from mmkd_tas.models import OFALoss
from mmkd_tas.models.losses.functional import ofa_loss

N, C = 5, 7


def logits(*shape, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def reference(student, teacher, labels, gamma, tau):
    """The formula, element by element."""
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        p = [math.exp(v / tau) for v in t]
        p = [v / sum(p) for v in p]
        norm = math.log(sum(math.exp(v / tau) for v in s))
        for c in range(len(s)):
            hot = float(c == y)
            total -= ((p[c] + hot) ** gamma - hot) * (s[c] / tau - norm)
    return total / len(student)


@pytest.mark.parametrize('gamma', [1.0, 1.5, 2.0])
@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('soft', [False, True])
def test_against_the_formula(gamma, tau, soft):
    student, teacher = logits(N, C), logits(N, C, seed=1)
    indices = [3, 0, 6, 6, 1]
    labels = torch.tensor(indices)
    if soft:  # mixup: the larger share counts
        labels = 0.7 * F.one_hot(labels, C) + 0.3 * F.one_hot((labels + 1) % C, C)
    loss = OFALoss(gamma=gamma, tau=tau, loss_weight=2.5)(student, teacher, labels)
    assert loss.item() == pytest.approx(2.5 * reference(student, teacher, indices, gamma, tau))


def test_gamma_1_is_cross_entropy_against_the_teacher():
    student, teacher = logits(N, C), logits(N, C, seed=1)
    expected = F.cross_entropy(student, teacher.softmax(1))
    loss = OFALoss()(student, teacher, torch.zeros(N, dtype=torch.long))
    torch.testing.assert_close(loss, expected)


def test_the_gradient():
    student, teacher = logits(N, C).requires_grad_(), logits(N, C, seed=1).requires_grad_()
    labels = torch.arange(N)
    torch.autograd.gradcheck(
        lambda s, t: ofa_loss(s, t, labels, gamma=1.5, tau=2.0), (student, teacher)
    )


def test_the_target_is_detached_unless_asked():
    labels = torch.arange(N)
    for detach, has_gradient in ((True, False), (False, True)):
        student, teacher = logits(N, C).requires_grad_(), logits(N, C, seed=1).requires_grad_()
        OFALoss(gamma=1.5, detach_target=detach)(student, teacher, labels).backward()
        assert student.grad.any()
        assert (teacher.grad is not None) == has_gradient


def test_several_outputs_add_up_with_their_own_gammas():
    outputs, teacher = [logits(N, C), logits(N, C, seed=2)], logits(N, C, seed=1)
    labels = torch.arange(N)
    loss = OFALoss(gamma=[1.0, 2.0])(outputs, teacher, labels)
    expected = sum(
        reference(output, teacher, labels.tolist(), gamma, 1.0)
        for output, gamma in zip(outputs, (1.0, 2.0), strict=True)
    )
    assert loss.item() == pytest.approx(expected)
    with pytest.raises(SetupError, match='2 values for 1 outputs'):
        OFALoss(gamma=[1.0, 2.0])(outputs[:1], teacher, labels)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('gamma', [1.0, 1.5])
def test_extreme_logits(dtype, gamma):
    """The student is certain, and wrong; so is, elsewhere, the target."""
    student = torch.tensor([[1000.0, 0, -1000], [-1000, 1000, 0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1000.0, 0, 1000], [-1000, 1000, 0]], dtype=dtype).requires_grad_()
    loss = OFALoss(gamma=gamma, detach_target=False)(student, teacher, torch.tensor([1, 1]))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()
    # The first image: the teacher's class is the third, -log p = 2000; with m at the second
    # class and p_t = 0 there, nothing more. The second: all agree.
    assert loss.item() == pytest.approx(1000, rel=1e-3)


def test_autocast_does_not_lower_the_precision():
    student, teacher = logits(N, C, scale=30).float(), logits(N, C, seed=1).float()
    labels = torch.arange(N)
    expected = OFALoss()(student, teacher, labels)
    with torch.autocast('cpu', torch.bfloat16):
        loss = OFALoss()(student, teacher, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize(
    ('cfg', 'sentence'),
    [(dict(gamma=0.5), 'gamma=0.5'), (dict(gamma=[1, 0.9]), 'gamma'), (dict(tau=0), 'tau=0')],
)
def test_bad_arguments(cfg, sentence):
    with pytest.raises(SetupError, match=sentence):
        MODELS.build(dict(type='mmkd_tas.OFALoss', **cfg))
