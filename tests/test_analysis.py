import copy
import itertools
import math

import pytest
import torch
from pairs import batch, distillation

from mmkd_tas.analysis import (
    FeatureReader,
    MinibatchCKA,
    coarse,
    percent_by_class,
    principal_map,
    unbiased_hsic,
)
from mmkd_tas.stages import describe, view_of


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + 1


def hsic_of_tuples(x, y):
    """The definition: a mean over all tuples of four different images."""
    a, b = (x @ x.T).tolist(), (y @ y.T).tolist()
    tuples = list(itertools.permutations(range(len(x)), 4))
    return sum(a[i][j] * (b[i][j] + b[q][r] - 2 * b[i][q]) for i, j, q, r in tuples) / len(tuples)


def hsic_of_matrices(x, y):
    """The textbook formula, dense."""
    n = len(x)
    one = torch.ones(n, dtype=torch.float64)
    a, b = ((m @ m.T) * (1 - torch.eye(n)) for m in (x, y))
    sums = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
    return ((a @ b).trace() + sums - 2 / (n - 2) * (one @ a @ b @ one)).item() / (n * (n - 3))


def cka(*pairs):
    """CKA of two features over batches."""
    estimate = MinibatchCKA()
    for pair in pairs:
        estimate.update(pair)
    return estimate.compute()


@pytest.mark.parametrize('n', [4, 7])
def test_hsic_against_the_formulas(n):
    x, y = features(n, 5), features(n, 2, 3, 1, seed=1)
    hsic = unbiased_hsic([x, y])
    for i, j in itertools.product(range(2), repeat=2):
        pair = [x, y.flatten(1)][i], [x, y.flatten(1)][j]
        assert hsic[i, j].item() == pytest.approx(hsic_of_tuples(*pair))
        assert hsic[i, j].item() == pytest.approx(hsic_of_matrices(*pair))


def test_cka_of_one_batch():
    x, y = features(30, 6), features(30, 4, seed=1)
    y[:, 0] = x[:, 0]
    norm = math.sqrt(hsic_of_matrices(x, x) * hsic_of_matrices(y, y))
    value = cka([x, y])[0, 1].item()
    assert value == pytest.approx(hsic_of_matrices(x, y) / norm)
    assert 0.05 < value < 0.95


def test_what_cka_does_not_see():
    x, y = features(30, 6), features(30, 6, seed=1) + features(30, 6)
    value = cka([x, y])[0, 1]
    rotation = torch.linalg.qr(features(6, 6, seed=2)).Q
    for same in (x @ rotation, 7 * x, x + features(6, seed=3)):
        torch.testing.assert_close(cka([same, y])[0, 1], value)
        torch.testing.assert_close(cka([same, x]), torch.ones(2, 2).double())
    stretched = x @ torch.diag(torch.tensor([5.0, 1, 1, 1, 1, 1]).double())
    assert (cka([stretched, y])[0, 1] - value).abs() > 0.02
    assert cka([stretched, x])[0, 1] < 0.98


def test_minibatches_estimate_the_whole():
    """Over all batches of five out of seven images the mean is exact, as of a U-statistic."""
    x, y = features(7, 3), features(7, 4, seed=1)
    chosen = map(list, itertools.combinations(range(7), 5))
    torch.testing.assert_close(cka(*([x[i], y[i]] for i in chosen)), cka([x, y]))


def test_batches_count_by_their_images():
    x, y = features(12, 3), features(12, 4, seed=1)
    hsic = 4 * unbiased_hsic([x[:4], y[:4]]) + 8 * unbiased_hsic([x[4:], y[4:]])
    expected = hsic[0, 1] / (hsic[0, 0] * hsic[1, 1]).sqrt()
    torch.testing.assert_close(cka([x[:4], y[:4]], [x[4:], y[4:]])[0, 1], expected)


def test_independent_features_and_constant_ones():
    independent = [[features(50, 4, seed=i), features(50, 4, seed=100 + i)] for i in range(20)]
    assert cka(*independent)[0, 1].abs() < 0.02
    constant = torch.full((8, 3), 0.1)
    assert cka([constant, features(8, 3)])[0].tolist() == [0, 0]


def test_features_far_from_zero():
    x = features(20, 3)
    torch.testing.assert_close(cka([x + 1e8, x]), torch.ones(2, 2).double())


def test_coarse():
    feature = features(2, 3, 16, 4)
    assert torch.equal(coarse(feature)[..., 0], feature[..., 0].unflatten(2, (8, 2)).mean(3))
    assert torch.equal(coarse(feature[:, :, 0, 0]), feature[:, :, 0, 0])


@pytest.mark.parametrize('sign', [1, -1])
def test_principal_map(sign):
    pattern, direction = features(3, 4) - 1, features(5, seed=1)
    feature = direction[:, None, None] * pattern + features(5, seed=2)[:, None, None]
    component, share = principal_map(feature, sign * pattern.repeat_interleave(2, 1)[None])
    expected = sign * (pattern - pattern.mean()) * direction.norm()
    torch.testing.assert_close(component, expected)
    assert share == pytest.approx(1)
    # two orthogonal patterns, of 3 : 1 in deviation
    checks = torch.tensor([[1.0, 1], [-1, -1]]), torch.tensor([[1.0, -1], [1, -1]])
    component, share = principal_map(torch.stack([3 * checks[0], checks[1]]), checks[0][None])
    torch.testing.assert_close(component, 3 * checks[0].double())
    assert share == pytest.approx(0.9)


def test_principal_map_of_one_position():
    component, share = principal_map(features(5, 1, 1), features(3, 8, 8))
    assert component.tolist() == [[0]]
    assert share == 0


def test_percent_by_class():
    labels, hits = torch.tensor([2, 0, 2, 2]), torch.tensor([True, False, False, True])
    percent = percent_by_class(hits, labels, 4)
    assert percent[0] == 0
    assert percent[2] == pytest.approx(200 / 3)
    assert percent[[1, 3]].isnan().all()


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'vit'), ('vit', 'resnet'), ('vit', 'mlp_mixer')]
)
def test_what_is_read_is_what_the_models_give(student, teacher):
    model = distillation('tas', student, teacher)
    before = copy.deepcopy(model.student)
    torch.nn.init.normal_(next(iter(before.parameters())))
    describe(before, view_of(model.student).input_size)
    reader = FeatureReader(model, before)
    images, samples = batch(model)
    made = []
    watch = reader.assistant.register_forward_hook(lambda *call: made.append(call[-1]))
    for _ in range(2):  # reading leaves nothing behind
        read = reader.read(images)
    watch.remove()
    assert read.keys() == {'teacher', 'student before', 'student after', 'assistant'}
    for name, expected in [
        ('teacher', model.teacher(model.teacher_inputs(images))),
        ('student before', before(images)),
        ('student after', model.student(images)),
        ('assistant', made[-1].logits),
    ]:
        torch.testing.assert_close(read[name]['logits'], expected)
    # the same as in a step of the training
    model.eval()
    watch = reader.assistant.register_forward_hook(lambda *call: made.append(call[-1]))
    model.loss(images, samples)
    watch.remove()
    torch.testing.assert_close(read['assistant']['logits'], made[-1].logits)
    torch.testing.assert_close(read['assistant']['pooled'], made[-1].pooled)
    view = view_of(model.student)
    for number, stage in enumerate(view.stages, 1):
        assert read['student after'][f'stage{number}'].shape == (4, stage.channels, *stage.grid)
    last = reader.assistant.outputs['feature']
    assert read['assistant']['stage4'].shape == (4, last.channels, *last.grid)


def test_without_an_assistant():
    model = distillation('kd', 'resnet', 'vit')
    reader = FeatureReader(model, copy.deepcopy(model.student))
    assert 'assistant' not in reader.read(batch(model)[0])
