import pytest
import torch

from mmkd_tas.models import HierarchicalContextLoss, HintLoss

SHAPES = (2, 4, 3), (2, 1, 5)


def features(seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(*s, generator=generator, dtype=torch.float64) for s in SHAPES]


def reference(student, teacher):
    """The formula, element by element."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True)
        total += sum((s - t) ** 2 for s, t in pairs) / ours.numel()
    return total


def test_against_the_formula():
    student, teacher = features(), features(1)
    loss = HintLoss(loss_weight=0.3)(student, teacher)
    assert loss.item() == pytest.approx(0.3 * reference(student, teacher))
    assert HintLoss()(student, student) == 0


def test_the_gradient():
    student, teacher = ([f.requires_grad_() for f in features(seed)] for seed in (0, 1))

    def loss(a, b, c, d):
        return HintLoss(detach_target=False)([a, b], [c, d])

    torch.autograd.gradcheck(loss, (*student, *teacher))
    HintLoss()(student, teacher).backward()
    assert all(f.grad.any() for f in student)
    assert all(f.grad is None for f in teacher)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_values(dtype):
    student = [(1000 * f.sign()).to(dtype).requires_grad_() for f in features()]
    teacher = [-f.detach() for f in student]
    loss = HintLoss()(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * 2000**2, rel=0.01)
    assert all(f.grad.isfinite().all() for f in student)


def test_a_stage_that_is_missing():
    with pytest.raises(ValueError, match='zip'):
        HintLoss()(features(), features()[:1])


# --- HierarchicalContextLoss ----------------------------------------------------------

# The coarser ones of a map: 4 x 4 is none of 4 x 6, and of 1 x 1 there is nothing.
MAPS = ((2, 3, 8, 8), (4, 2, 1)), ((2, 3, 4, 6), (2, 1)), ((2, 3, 1, 1), ())


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=generator, dtype=torch.float64) for s, _ in MAPS]


def context(ours, theirs, sides):
    """The formula, region by region."""

    def mse(a, b):
        return ((a - b) ** 2).sum().item() / a.numel()

    total, weights = mse(ours, theirs), [1.0]
    for side in sides:
        weights.append(weights[-1] / 2)
        height, width = (size / side for size in ours.shape[-2:])
        regions = [
            [
                f[..., int(i * height) : int((i + 1) * height), :][
                    ..., int(j * width) : int((j + 1) * width)
                ].mean((-2, -1))
                for i in range(side)
                for j in range(side)
            ]
            for f in (ours, theirs)
        ]
        total += weights[-1] * mse(*(torch.stack(r) for r in regions))
    return total / sum(weights)


def test_context_against_the_formula():
    student, teacher = maps(), maps(1)
    loss = HierarchicalContextLoss(loss_weight=0.3)(student, teacher)
    parts = zip(student, teacher, (sides for _, sides in MAPS), strict=True)
    assert loss.item() == pytest.approx(0.3 * sum(context(*part) for part in parts))


def test_the_gradient_of_context():
    student, teacher = maps()[1].requires_grad_(), maps(1)[1].requires_grad_()

    def loss(s, t):
        return HierarchicalContextLoss(detach_target=False)([s], [t])

    torch.autograd.gradcheck(loss, (student, teacher))
    HierarchicalContextLoss()([student], [teacher]).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_extreme_values_of_context(dtype):
    student = [(1000 * f.sign()).to(dtype).requires_grad_() for f in maps()]
    loss = HierarchicalContextLoss()(student, [-f.detach() for f in student])
    loss.backward()
    assert loss.isfinite()
    assert all(f.grad.isfinite().all() for f in student)
