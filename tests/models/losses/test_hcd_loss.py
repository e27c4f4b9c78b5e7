import math

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn import functional as F

from mmkd_tas.errors import SetupError
from mmkd_tas.models import HCDLoss
from mmkd_tas.models.losses.functional import orthogonality

S, N, K, C = 3, 4, 3, 5


def logits(*shape, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softmax(values, tau):
    exps = [math.exp(v / tau) for v in values]
    return [e / sum(exps) for e in exps]


def kl(target, student, tau):
    p, q = softmax(target, tau), softmax(student, tau)
    return tau**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def smooth_cross_entropy(z, y, smoothing):
    p = softmax(z, 1.0)
    target = [smoothing / C + (1 - smoothing) * (c == y) for c in range(C)]
    return -sum(t * math.log(v) for t, v in zip(target, p, strict=True))


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def reference(sub, student, teacher, labels, tau, theta, lambdas, smoothing):
    """The terms, by loops over stages, images and sub-logits."""
    terms = dict(ce=0.0, kd=0.0, sdd=0.0, ol=0.0)
    sub, student, teacher = sub.tolist(), student.tolist(), teacher.tolist()
    for n, y in enumerate(labels):
        terms['kd'] += kl(teacher[n], student[n], tau) / N
        for k in range(S):
            z = [
                [lambdas[0] * a + lambdas[1] * b for a, b in zip(part, teacher[n], strict=True)]
                for part in sub[k][n]
            ]
            for part in z:
                terms['ce'] += smooth_cross_entropy(part, y, smoothing) / K / N
                terms['sdd'] += kl(part, student[n], tau) / K / N
            others = [[0.0 if c == y else v for c, v in enumerate(part)] for part in z]
            for i in range(K):
                for j in range(K):
                    if i != j:
                        excess = max(0.0, cosine(others[i], others[j]) - theta)
                        terms['ol'] += excess**2 / (K * (K - 1)) / N
    return terms


@pytest.mark.parametrize('tau', [1.0, 3.0])
@pytest.mark.parametrize('lambdas', [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize('reduction', ['sum', 'mean'])
def test_against_loops(tau, lambdas, reduction):
    sub, student, teacher = logits(S, N, K, C), logits(N, C, seed=1), logits(N, C, seed=2)
    labels = [0, 4, 2, 2]
    weights = dict(gt_weight=2.0, kd_weight=0.5, sdd_weight=6.0, ol_weight=3.0)
    loss = HCDLoss(
        tau=tau,
        theta=0.2,
        lambda_s=lambdas[0],
        lambda_t=lambdas[1],
        stage_reduction=reduction,
        loss_weight=0.7,
        **weights,
    )
    terms = loss(sub, student, teacher, torch.tensor(labels))
    expected = reference(sub, student, teacher, labels, tau, 0.2, lambdas, 0.1)
    assert expected['ol'] > 0.01
    for (name, value), weight in zip(expected.items(), weights.values(), strict=True):
        stages = S if reduction == 'mean' and name != 'kd' else 1
        assert terms[name].item() == pytest.approx(0.7 * weight * value / stages)


def test_shares_of_classes():
    sub, student, teacher = logits(S, N, K, C), logits(N, C, seed=1), logits(N, C, seed=2)
    labels = torch.tensor([0, 4, 2, 2])
    hot = F.one_hot(labels, C).double()
    expected = HCDLoss()(sub, student, teacher, labels)
    for name, value in HCDLoss()(sub, student, teacher, hot).items():
        torch.testing.assert_close(value, expected[name])
    shares = 0.6 * hot + 0.4 * hot.roll(1, dims=1)
    ce = HCDLoss(label_smoothing=0.0)(sub, student, teacher, shares)['ce']
    both = (
        HCDLoss(label_smoothing=0.0)(sub, student, teacher, h.argmax(1))['ce']
        for h in (hot, hot.roll(1, dims=1))
    )
    torch.testing.assert_close(ce, sum(w * v for w, v in zip((0.6, 0.4), both, strict=True)))


def test_orthogonality_in_closed_form():
    labels = torch.tensor([0, 1])
    same = logits(1, 2, 1, C).expand(1, 2, K, C)
    torch.testing.assert_close(
        orthogonality(same, labels, theta=0.5), torch.full((1, 2), 0.25).double()
    )
    alone = logits(1, 2, 1, C)
    assert not orthogonality(alone, labels).any()
    labels = torch.tensor([4, 4])
    orthogonal = torch.eye(3, C).expand(1, 2, 3, C)
    assert not orthogonality(orthogonal, labels, theta=0.0).any()
    # What is alike only at the true class is not alike.
    orthogonal = orthogonal.clone()
    orthogonal[..., 4] = 100.0
    assert not orthogonality(orthogonal, labels, theta=0.0).any()


def test_who_gets_gradients():
    # by default the target is detached, unlike in the paper
    for detach, keys in (
        (False, {'detach_target': False}),
        (True, {'detach_target': True}),
        (True, {}),
    ):
        sub, student, teacher = (
            z.requires_grad_()
            for z in (logits(S, N, K, C), logits(N, C, seed=1), logits(N, C, seed=2))
        )
        terms = HCDLoss(**keys)(sub, student, teacher, torch.zeros(N).long())
        got = {}
        for name, term in terms.items():
            grads = torch.autograd.grad(
                term, (sub, student, teacher), retain_graph=True, allow_unused=True
            )
            got[name] = tuple(g is not None and bool(g.any()) for g in grads)
        assert got == dict(
            ce=(True, False, False),
            kd=(False, True, False),
            sdd=(not detach, True, False),
            ol=(True, False, False),
        )


def test_the_gradient():
    sub, student, teacher = logits(1, 2, 3, 4), logits(2, 4, seed=1), logits(2, 4, seed=2)
    labels = torch.tensor([0, 3])
    loss = HCDLoss(theta=0.1, detach_target=False)

    def total(sub, student):
        return sum(loss(sub, student, teacher, labels).values())

    torch.autograd.gradcheck(total, (sub.requires_grad_(), student.requires_grad_()))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits(dtype):
    sub = torch.zeros(S, N, K, C, dtype=dtype)
    sub[..., 0], sub[:, 1] = 1000, -1000
    student = torch.zeros(N, C, dtype=dtype)
    student[:, 1] = 1000
    sub.requires_grad_()
    student.requires_grad_()
    terms = HCDLoss()(sub, student, -student.detach(), torch.tensor([0, 1, 2, 3]))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert sub.grad.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ('cfg', 'sentence'),
    [
        (dict(tau=0), 'tau=0'),
        (dict(theta=2), 'theta=2'),
        (dict(stage_reduction='max'), "stage_reduction='max' is neither"),
        (dict(label_smoothing=1), 'label_smoothing=1'),
    ],
)
def test_bad_arguments(cfg, sentence):
    with pytest.raises(SetupError, match=sentence):
        MODELS.build(dict(type='mmkd_tas.HCDLoss', **cfg))
