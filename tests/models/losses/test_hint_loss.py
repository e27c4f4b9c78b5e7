import pytest
import torch

from mmkd_tas.models import HintLoss

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
