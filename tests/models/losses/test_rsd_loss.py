import math

import pytest
import torch
from processes import run_processes

from mmkd_tas.errors import SetupError
from mmkd_tas.models import RSDLoss

N, D = 6, 4


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 1


def reference(student, teacher, kappa):
    """The formula, element by element."""

    def standardised(rows):
        columns = []
        for column in zip(*rows, strict=True):
            mean = sum(column) / len(column)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
            columns.append([(v - mean) / (deviation + 1e-5) for v in column])
        return columns

    ours, theirs = standardised(student.tolist()), standardised(teacher.tolist())
    total = 0.0
    for i, t in enumerate(theirs):
        for j, s in enumerate(ours):
            p = sum(a * b for a, b in zip(t, s, strict=True)) / len(s)
            total += (p - 1) ** 2 if i == j else kappa * p**2
    return total


@pytest.mark.parametrize('kappa', [0.0, 0.01, 1.0])
def test_against_the_formula(kappa):
    student, teacher = features(N, D), features(N, D, seed=1)
    for scale in (1.0, 1e-4):  # at which the deviations are not far above 1e-5
        loss = RSDLoss(kappa=kappa, loss_weight=0.3)(scale * student, teacher)
        expected = 0.3 * reference(scale * student, teacher, kappa)
        assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_closed_forms():
    # Uncorrelated dimensions: nothing is lost.
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    assert RSDLoss()(5 * signs + 7, signs).item() == pytest.approx(0, abs=1e-8)
    # Exchanged: both diagonals 0, both others 1.
    exchanged = RSDLoss(kappa=0.1)(signs.flip(1), signs)
    assert exchanged.item() == pytest.approx(2 + 0.2, rel=1e-4)
    # A constant student correlates with nothing.
    assert RSDLoss()(torch.ones(4, 2).double(), signs).item() == pytest.approx(2)


def test_the_gradient():
    student, teacher = features(N, D).requires_grad_(), features(N, D, seed=1).requires_grad_()
    torch.autograd.gradcheck(RSDLoss(detach_target=False), (student, teacher))


def test_the_target_is_detached_unless_asked():
    for detach, has_gradient in ((True, False), (False, True)):
        student, teacher = features(N, D).requires_grad_(), features(N, D, seed=1).requires_grad_()
        RSDLoss(detach_target=detach)(student, teacher).backward()
        assert student.grad.any()
        assert (teacher.grad is not None) == has_gradient


@pytest.mark.parametrize('value', [0.0, 0.1, 1000.0])
def test_a_dimension_without_variance_has_no_gradient(value):
    student, teacher = features(N, D), features(N, D, seed=1)
    student[:, 0] = teacher[:, 1] = value
    student.requires_grad_()
    teacher.requires_grad_()
    RSDLoss(detach_target=False)(student, teacher).backward()
    for rows, dead in ((student, 0), (teacher, 1)):
        assert rows.grad.isfinite().all()
        others = [d for d in range(D) if d != dead]
        assert rows.grad[:, others].any()
    # a batch of one image
    student = features(1, D).requires_grad_()
    RSDLoss()(student, features(1, D, seed=1)).backward()
    assert not student.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_values(dtype):
    student = (1000 * features(N, D).sign()).to(dtype)
    student[:, 0] = 1000  # a dead dimension
    student.requires_grad_()
    loss = RSDLoss()(student, (1000 * features(N, D, seed=1)).to(dtype))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision():
    student, teacher = features(N, D), features(N, D, seed=1)
    with torch.autocast('cpu', torch.bfloat16):
        loss = RSDLoss()(student.float(), teacher.float())
    assert loss.item() == pytest.approx(reference(student, teacher, 0.01), rel=1e-5)


def test_a_negative_weight():
    with pytest.raises(SetupError, match='kappa=-1'):
        RSDLoss(kappa=-1)


ROWS = 5, 3


def _gradient(rank, detach):
    """The gradient of the projections, averaged as DDP does it."""
    weights = [features(D, D, seed=seed).requires_grad_() for seed in (2, 3)]
    batch = [features(sum(ROWS), D), features(sum(ROWS), D, seed=1)]
    if rank is not None:
        start = sum(ROWS[:rank])
        batch = [f[start : start + ROWS[rank]] for f in batch]
    loss = RSDLoss(detach_target=detach)(*(f @ w for f, w in zip(batch, weights, strict=True)))
    loss.backward()
    gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
    if rank is not None:
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
            gradient /= len(ROWS)
    return [loss.item(), *gradients]


@pytest.mark.parametrize('detach', [False, True])
def test_two_processes_equal_one_with_the_whole_batch(detach):
    expected = _gradient(None, detach)
    assert expected[1].abs().max() > 1e-3
    for got in run_processes(_gradient, detach):
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
