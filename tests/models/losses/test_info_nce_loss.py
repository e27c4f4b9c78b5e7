import math

import pytest
import torch
from processes import run_processes
from torch.nn import functional as F

from mmkd_tas.errors import SetupError
from mmkd_tas.models import InfoNCELoss
from mmkd_tas.models.losses.functional import gather, images_of_step, info_nce


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def reference(queries, keys, scale):
    """The formula, element by element."""

    def cosine(a, b):
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms

    queries, keys = queries.tolist(), keys.tolist()
    total = 0.0
    for i, query in enumerate(queries):
        similar = [scale * cosine(query, key) for key in keys]
        total -= similar[i] - math.log(sum(math.exp(s) for s in similar))
    return total / len(queries)


@pytest.mark.parametrize('tau', [0.07, 0.5])
def test_against_the_formula(tau):
    student, teacher = features(6, 4), features(6, 4, seed=1)
    loss = InfoNCELoss(tau=tau, loss_weight=0.5)(student, teacher)
    assert loss.item() == pytest.approx(0.5 * reference(student, teacher, 1 / tau), rel=1e-6)
    both = InfoNCELoss(tau=tau, symmetric=True)(student, teacher)
    expected = reference(student, teacher, 1 / tau) + reference(teacher, student, 1 / tau)
    assert both.item() == pytest.approx(expected / 2, rel=1e-6)


def test_regions_are_rows_of_their_own():
    student, teacher = features(3, 4, 5), features(3, 4, 5, seed=1)
    loss = InfoNCELoss()(student, teacher)
    expected = reference(student.flatten(0, 1), teacher.flatten(0, 1), 1 / 0.07)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_identical_one_hot_features():
    """The positive has cosine 1 and the negatives 0: log(1 + (N - 1) exp(-s))."""
    one_hot = torch.eye(5, dtype=torch.float64) * 3
    loss = InfoNCELoss(tau=0.5)(one_hot, one_hot)
    assert loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), rel=1e-6)


def test_the_gradient():
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    student, teacher = features(4, 3).requires_grad_(), features(4, 3, seed=1).requires_grad_()
    torch.autograd.gradcheck(info_nce, (student, teacher, scale))


def test_the_target_is_detached_unless_asked():
    for detach, has_gradient in ((True, False), (False, True)):
        student, teacher = features(4, 3).requires_grad_(), features(4, 3).requires_grad_()
        InfoNCELoss(detach_target=detach)(student, teacher).backward()
        assert student.grad is not None
        assert (teacher.grad is not None) == has_gradient


def test_the_scale_is_learned_and_clamped():
    loss = InfoNCELoss(tau=0.011)
    optimizer = torch.optim.SGD(loss.parameters(), lr=100)
    one_hot = torch.eye(5)
    for _ in range(3):  # a larger scale is always better here
        optimizer.zero_grad()
        loss(one_hot, one_hot + 20).backward()
        optimizer.step()
    loss(one_hot, one_hot)
    assert loss.log_scale.exp().item() == pytest.approx(100)
    # At the limit it still has a gradient, and so can go down again.
    loss.zero_grad()
    loss(one_hot, one_hot.flip(0)).backward()
    assert loss.log_scale.grad.item() > 0
    assert not InfoNCELoss(learnable=False).log_scale.requires_grad


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_features(dtype):
    student = (1000 * features(4, 3)).to(dtype)
    student[0] = 0  # as after a dead ReLU
    student.requires_grad_()
    loss = InfoNCELoss(tau=0.01)(student, (1000 * features(4, 3, seed=1)).to(dtype))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_autocast_does_not_lower_the_precision():
    student, teacher = features(8, 16), features(8, 16, seed=1)
    with torch.autocast('cpu', torch.bfloat16):
        loss = InfoNCELoss()(student.float(), teacher.float())
    assert loss.item() == pytest.approx(reference(student, teacher, 1 / 0.07), rel=1e-5)


def test_too_small_a_temperature():
    with pytest.raises(SetupError, match=r'tau=0\.001'):
        InfoNCELoss(tau=0.001)


ROWS = 5, 3  # of the two processes: the last batch may be uneven


def _gradients(rank, symmetric, detach):
    """Gradients of features' projections and the scale, averaged as DDP does it."""
    loss = InfoNCELoss(symmetric=symmetric, detach_target=detach)
    projections = torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(6, 4, bias=False)
    for seed, projection in enumerate(projections):
        projection.double()
        projection.weight.data.copy_(features(4, 6, seed=seed))
    student, teacher = features(8, 6), features(8, 6, seed=1)
    if rank is not None:
        start = sum(ROWS[:rank])
        student, teacher = (f[start : start + ROWS[rank]] for f in (student, teacher))
    value = loss(projections[0](student), projections[1](teacher))
    value.backward()
    parameters = (projections[0].weight, projections[1].weight, loss.log_scale)
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    if rank is not None:
        for gradient in (value.detach(), *gradients):
            torch.distributed.all_reduce(gradient)
            gradient /= len(ROWS)
    return [value.item(), *gradients]


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('detach', [False, True])
def test_two_processes_equal_one_with_the_whole_batch(symmetric, detach):
    expected = _gradients(None, symmetric, detach)
    for got in run_processes(_gradients, symmetric, detach):
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert F.mse_loss(expected[1], torch.zeros_like(expected[1])) > 0


def _part_of_the_images(rank):
    loss, rows = InfoNCELoss(), torch.eye(4)[: 3 + rank]
    alone = loss(rows, rows)  # outside of a step any number will do
    with images_of_step(3 + rank):
        assert torch.equal(loss(rows, rows), alone)
        regions = rows[:, None].repeat(1, 2, 1)
        assert loss(regions, regions).isfinite()
    with images_of_step(4), pytest.raises(SetupError, match='got 2 of the 4 images'):
        loss(rows[:2], rows[:2])
    with images_of_step(3, equal=True):
        assert gather(rows[:3], 3)[1] == 3 * rank
    return float(alone)


def test_in_a_step_the_loss_gets_all_images():
    for value in run_processes(_part_of_the_images):
        assert value > 0
