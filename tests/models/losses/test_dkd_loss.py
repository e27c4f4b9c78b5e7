import math

import pytest
import torch
from mmrazor.models import DKDLoss as Stock
from torch.nn import functional as F

from mmkd_tas.errors import SetupError
from mmkd_tas.models import DKDLoss

LABELS = torch.tensor([2, 0, 1])


def logits(seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, 4, generator=generator, dtype=torch.float64)


def reference(student, teacher, alpha, beta, tau):
    """The formula, image by image."""

    def softmax(z):
        powers = [math.exp(v / tau) for v in z]
        return [p / sum(powers) for p in powers]

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        ours, theirs = softmax(s), softmax(t)
        binary = kl([theirs[y], 1 - theirs[y]], [ours[y], 1 - ours[y]])
        others = kl(*(softmax([v for c, v in enumerate(z) if c != y]) for z in (t, s)))
        total += tau**2 * (alpha * binary + beta * others)
    return total / len(student)


@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize(('alpha', 'beta'), [(1.0, 8.0), (0.5, 0.0), (0.0, 2.0)])
def test_against_the_formula(tau, alpha, beta):
    student, teacher = logits(), logits(1)
    loss = DKDLoss(tau=tau, alpha=alpha, beta=beta, loss_weight=0.3)(student, teacher, LABELS)
    assert loss.item() == pytest.approx(0.3 * reference(student, teacher, alpha, beta, tau))
    stock = Stock(tau=tau, alpha=alpha, beta=beta, loss_weight=0.3)(student, teacher, LABELS)
    torch.testing.assert_close(loss, stock)


def test_weighted_by_what_is_left_it_is_kd():
    """Equation 6 of the paper: KD weighs the others with 1 - p of the true class."""
    student, teacher = logits()[:1], logits(1)[:1]
    others = 1 - teacher.softmax(1)[0, 2].item()
    loss = DKDLoss(beta=others)(student, teacher, LABELS[:1])
    kd = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction='sum')
    torch.testing.assert_close(loss, kd)


def test_shares_of_classes():
    shares = F.one_hot(LABELS, 4) * 0.6 + 0.1
    student, teacher = logits(), logits(1)
    assert DKDLoss()(student, teacher, shares) == DKDLoss()(student, teacher, LABELS)


def test_the_gradient():
    student, teacher = logits().requires_grad_(), logits(1).requires_grad_()
    loss = DKDLoss(tau=2.0, beta=8.0, detach_target=False)
    torch.autograd.gradcheck(lambda s, t: loss(s, t, LABELS), (student, teacher))
    DKDLoss()(student, teacher, LABELS).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_a_student_that_is_certain_and_wrong(dtype):
    """Where MMRazor's loss is infinite or takes the true class for one of the others."""
    student = torch.tensor([[1000.0, -1000, -1000, 0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1000.0, 1000, -1000, 0]], dtype=dtype)
    loss = DKDLoss()(student, teacher, torch.tensor([1]))
    loss.backward()
    # The true class has 0 and not 1: 2000 nats; among the others 1000 more than the best.
    assert loss.item() == pytest.approx(2000 + 1000)
    assert student.grad.isfinite().all()
    assert student.grad[0].tolist() == pytest.approx([2, -1, 0, -1])


def test_too_small_a_temperature():
    with pytest.raises(SetupError, match='tau=0'):
        DKDLoss(tau=0)
