import itertools
import math

import pytest
import torch

from mmkd_tas.models import CCLoss, RKDLoss

N = 5


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 1


# --- CC -----------------------------------------------------------------------------


def cc(student, teacher):
    """The formula, element by element."""
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    deltas = [[abs(s - t) for s, t in zip(*pair, strict=True)] for pair in rows]
    products = [
        sum(a * b for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(deltas)
    ]
    return sum(products) / len(products)


def test_cc_against_the_formula():
    student, teacher = features(N, 3), features(N, 3, seed=1)
    assert CCLoss()(student, teacher).item() == pytest.approx(0.02 * cc(student, teacher))
    assert CCLoss()(student, student) == 0
    # One image has no neighbour.
    assert CCLoss()(student[:1], teacher[:1]) == 0


def test_the_gradient_of_cc():
    student, teacher = features(N, 3).requires_grad_(), features(N, 3, seed=1).requires_grad_()
    torch.autograd.gradcheck(CCLoss(loss_weight=1), (student, teacher))
    CCLoss(detach_target=True)(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


# --- RKD ----------------------------------------------------------------------------


def huber(a, b):
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def rkd(student, teacher):
    """Both formulas, image by image."""
    relations = []
    for rows in (student.tolist(), teacher.tolist()):
        offsets = [[[b - a for a, b in zip(x, y, strict=True)] for y in rows] for x in rows]
        lengths = [[math.hypot(*offset) for offset in row] for row in offsets]
        others = [d for row in lengths for d in row if d > 0]
        mean = sum(others) / len(others)
        distances = [d / mean for row in lengths for d in row]
        angles = []
        for i in range(len(rows)):
            for j in range(len(rows)):
                for k in range(len(rows)):
                    norms = lengths[i][j] * lengths[i][k]
                    product = sum(a * b for a, b in zip(offsets[i][j], offsets[i][k], strict=True))
                    angles.append(product / norms if norms else 0.0)
        relations.append((distances, angles))
    return tuple(
        sum(map(huber, ours, theirs)) / len(ours) for ours, theirs in zip(*relations, strict=True)
    )


@pytest.mark.parametrize('width', [3, 7])
def test_rkd_against_the_formula(width):
    student, teacher = features(N, 3), features(N, width, seed=1)
    distance, angle = rkd(student, teacher)
    terms = RKDLoss(loss_weight=0.1)(student, teacher)
    assert terms['distance'].item() == pytest.approx(2.5 * distance)
    assert terms['angle'].item() == pytest.approx(5 * angle)
    assert distance > 0.01
    assert angle > 0.01


def test_rkd_knows_relations_alone():
    """Moved, turned and scaled, and in more dimensions: nothing has changed."""
    student = features(N, 3)
    rotation = torch.linalg.qr(features(8, 8, seed=1)).Q
    moved = 7 * torch.cat([student, torch.zeros(N, 5)], 1) @ rotation + 3
    for term in RKDLoss()(student, moved).values():
        assert term.item() == pytest.approx(0, abs=1e-12)


def test_features_far_from_the_origin():
    """In float32 too: differences, and no difference of large squares."""
    student, teacher = features(N, 3), features(N, 3, seed=1)
    exact = RKDLoss()(student, teacher)
    far = RKDLoss()((student + 1000).float(), (teacher - 1000).float())
    for name, term in exact.items():
        assert far[name].item() == pytest.approx(term.item(), rel=1e-3)


def test_the_gradient_of_rkd():
    student, teacher = features(N, 3).requires_grad_(), features(N, 4, seed=1).requires_grad_()

    def terms(student, teacher):
        return tuple(RKDLoss(detach_target=False)(student, teacher).values())

    torch.autograd.gradcheck(terms, (student, teacher))
    sum(RKDLoss()(student, teacher).values()).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize('images', [1, 3])
def test_images_with_the_same_feature(images):
    """As after a dead ReLU: no relation, no gradient, and nothing infinite."""
    student = torch.zeros(images, 3).requires_grad_()
    terms = RKDLoss()(student, features(images, 4).float())
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert not student.grad.any()


# --- Both ---------------------------------------------------------------------------


@pytest.mark.parametrize('loss', [CCLoss(), RKDLoss()])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_values(loss, dtype):
    student = (1000 * features(N, 3).sign()).to(dtype).requires_grad_()
    terms = loss(student, (1000 * features(N, 3, seed=1)).to(dtype))
    terms = terms if isinstance(terms, dict) else {'': terms}
    sum(terms.values()).backward()
    assert all(term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    assert student.grad.isfinite().all()


@pytest.mark.parametrize('loss', [CCLoss(), RKDLoss()])
def test_autocast_does_not_lower_the_precision(loss):
    pair = features(N, 3).float(), features(N, 3, seed=1).float()
    expected = loss(*pair)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(loss(*pair), expected, rtol=1e-6, atol=0)
