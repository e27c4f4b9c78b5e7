import copy
import math
import time

import pytest
import torch
from helpers import REPO, TINY, same
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmrazor.models import CRDLoss as Stock
from pairs import batch, distillation, step
from processes import run_processes

from mmkd_tas.checkpoint import read_checkpoint
from mmkd_tas.errors import SetupError
from mmkd_tas.models import CRDLoss
from mmkd_tas.models.losses.functional import crd_log_partition, crd_loss, unit_vectors

N, D, K, IMAGES = 3, 4, 6, 20
CLASSES = torch.tensor([2, 0, 1])
INDICES = torch.tensor([7, 0, 12])


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def module(**keys):
    """A loss in float64, with a memory that depends on nothing."""
    keys = dict(width=D, num_images=IMAGES, num_negatives=K, **keys)
    loss = CRDLoss(**keys).double()
    loss.memory.copy_(features(2, IMAGES, D, seed=5) / 2)
    return loss


# --- The formula ----------------------------------------------------------------------


def parts():
    different = torch.ones(N, K, dtype=torch.bool)
    different[0, 2] = different[1, :3] = False
    anchors, positives, negatives = (
        unit_vectors(features(2, count, D, seed=seed)) for seed, count in enumerate((N, N, K))
    )
    return anchors, positives, negatives, different


def reference(anchors, positives, negatives, different, log_partition, tau):
    """The formula, pair by pair; without a given log Z, that of these pairs."""
    losses, partitions = [0.0] * N, []
    for side in range(2):
        scores = []
        for i in range(N):
            kept = [j for j in range(K) if different[i, j]]
            others = [positives[side, i], *(negatives[side, j] for j in kept)]
            scores.append([math.exp(float(anchors[side, i] @ v) / tau) for v in others])
        z = IMAGES * sum(sum(row) / len(row) for row in scores) / N
        partitions.append(math.log(z))
        z = z if log_partition is None else math.exp(float(log_partition[side]))
        for i, (own, *others) in enumerate(scores):
            h = [p / z / (p / z + K / IMAGES) for p in (own, *others)]
            losses[i] -= math.log(h[0])
            losses[i] -= K * sum(math.log(1 - p) for p in h[1:]) / len(others)
    return losses, partitions


@pytest.mark.parametrize('log_partition', [None, torch.tensor([1.0, 4.0])])
def test_against_the_formula(log_partition):
    expected, partitions = reference(*parts(), log_partition, tau=0.3)
    keys = dict(images=IMAGES, tau=0.3)
    found = crd_log_partition(*parts(), **keys)
    assert found.tolist() == pytest.approx(partitions)
    given = found if log_partition is None else log_partition.double()
    loss = crd_loss(*parts(), log_partition=given, **keys)
    assert loss.tolist() == pytest.approx(expected)


def test_the_gradient():
    anchors, *others = parts()
    keys = dict(log_partition=torch.tensor([1.0, 2.0]).double(), images=IMAGES, tau=0.3)
    torch.autograd.gradcheck(lambda a: crd_loss(a, *others, **keys), anchors.requires_grad_())


def test_against_the_loss_of_mmrazor():
    """Which is right where it is given the negatives, but for its weight, which it ignores."""
    ours = module().float()
    student, teacher = (unit_vectors(features(N, D, seed=s)).float() for s in (1, 2))
    negatives = torch.randint(IMAGES, (K,), generator=torch.Generator().manual_seed(0))
    # No image is its own negative.
    indices = torch.tensor([i for i in range(IMAGES) if i not in negatives][:N])
    samples = []
    for index in indices:
        sample = BaseDataElement()
        sample.set_data(dict(sample_idx=index))
        sample.set_data(dict(contrast_sample_idxs=torch.cat([index[None], negatives])))
        samples.append(sample)
    stock = Stock(neg_num=K, sample_n=IMAGES, dim_out=D)
    stock.contrast.memory_v1.copy_(ours.memory[0])
    stock.contrast.memory_v2.copy_(ours.memory[1])
    torch.testing.assert_close(ours(student, teacher, indices), stock(student, teacher, samples)[0])
    torch.testing.assert_close(ours.memory[0], stock.contrast.memory_v1)
    torch.testing.assert_close(ours.memory[1], stock.contrast.memory_v2)


# --- The memory -----------------------------------------------------------------------


def test_what_is_remembered():
    loss = module(momentum=0.25)
    before = loss.memory.clone()
    student, teacher = features(N, D, seed=1), features(N, 4, seed=2)
    loss(student, teacher, INDICES, CLASSES)
    for row, index in enumerate(INDICES.tolist()):
        for side, feature in enumerate((student, teacher)):
            mixed = 0.25 * before[side, index] + 0.75 * feature[row] / feature[row].norm()
            torch.testing.assert_close(loss.memory[side, index], mixed / mixed.norm())
    others = [i for i in range(IMAGES) if i not in INDICES]
    assert torch.equal(loss.memory[:, others], before[:, others])
    assert loss.classes[INDICES].tolist() == CLASSES.tolist()
    assert (loss.classes[others] == -1).all()
    remembered = loss.memory.clone()
    loss.eval()(student, teacher, INDICES, CLASSES)
    assert torch.equal(loss.memory, remembered)


def test_an_image_that_is_there_twice_and_one_that_is_not_finite():
    loss, expected = module(), module()
    before = loss.memory.clone()
    student, teacher = features(N, D, seed=1), features(N, D, seed=2)
    student[2, 0] = math.nan
    loss(student, teacher, torch.tensor([5, 5, 6]))
    assert torch.equal(loss.memory[0, 6], before[0, 6])
    expected(student[1:2], teacher[1:2], torch.tensor([5]))
    assert torch.equal(loss.memory[:, 5], expected.memory[:, 5])


def test_neither_itself_nor_its_class_is_a_negative():
    loss = module()
    drawn = torch.randint(IMAGES, (K,), generator=torch.Generator().manual_seed(0))
    loss.classes[drawn[1]] = 2
    anchors = features(2, 2, D)
    own = torch.stack([drawn[0], drawn[2]])
    *_, different = loss._contrasted(anchors, own, torch.tensor([2, -1]))
    expected = [[d != own[0] and d != drawn[1] for d in drawn], [d != own[1] for d in drawn]]
    assert different.tolist() == expected


def test_the_weight_counts():
    pair = features(N, D, seed=1), features(N, D, seed=2)
    one, many = (module(loss_weight=weight)(*pair, INDICES) for weight in (1.0, 100.0))
    torch.testing.assert_close(100 * one, many)


def test_both_sides_learn():
    student, teacher = (features(N, D, seed=s).requires_grad_() for s in (1, 2))
    module()(student, teacher, INDICES).backward()
    assert student.grad.any()
    assert teacher.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_features(dtype):
    loss = module(tau=0.01).float()
    student = (1000 * features(N, D, seed=1)).to(dtype)
    student[0] = 0  # as after a dead ReLU
    student.requires_grad_()
    for _ in range(2):
        value = loss(student, (-1000 * features(N, D, seed=1)).to(dtype), INDICES, CLASSES)
    value.backward()
    assert value.isfinite()
    assert value.dtype == torch.float32
    assert student.grad.isfinite().all()
    assert loss.memory.isfinite().all()


def test_soft_labels_and_autocast():
    student, teacher = features(N, D, seed=1).float(), features(N, D, seed=2).float()
    shares = torch.nn.functional.one_hot(CLASSES, 3) * 0.7 + 0.1
    plain, mixed = module().float(), module().float()
    for _ in range(2):
        expected = plain(student, teacher, INDICES, CLASSES)
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(mixed(student, teacher, INDICES, shares), expected)


def test_it_is_in_the_state():
    """A loss that was built without the data takes it from there, and goes on exactly."""

    def run(loss, steps):
        pairs = [(features(N, D, seed=s), features(N, D, seed=s + 9)) for s in steps]
        return [
            loss(*pair, (INDICES + k) % IMAGES, CLASSES)
            for k, pair in zip(steps, pairs, strict=True)
        ]

    whole, stopped = module(), module()
    expected = run(whole, (0, 1, 2, 3))
    run(stopped, (0, 1))
    other = CRDLoss(width=D, num_negatives=K).double()
    other.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert run(other, (2, 3)) == expected[2:]
    assert same(other.state_dict(), whole.state_dict())
    assert expected[2] != expected[3]


# --- Several processes ----------------------------------------------------------------

ROWS = 5, 3


def _steps(rank):
    """Three steps; the gradient of the projections, averaged as DDP does it, and the memory."""
    torch.manual_seed(rank or 0)  # processes may draw other numbers
    loss = CRDLoss(width=D, num_images=IMAGES, num_negatives=K)
    drawn = loss.memory.clone()
    loss = module(momentum=0.5)
    loss.classes.fill_(-1)
    weights = [features(D, D, seed=seed).requires_grad_() for seed in (2, 3)]
    found = []
    for k in range(3):
        rows = features(sum(ROWS), D, seed=10 + k), features(sum(ROWS), D, seed=20 + k)
        indices = (torch.arange(sum(ROWS)) * 3 + k) % IMAGES
        own = slice(None) if rank is None else slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
        pair = (row[own] @ w for row, w in zip(rows, weights, strict=True))
        value = loss(*pair, indices[own], indices[own] % 3)
        found += [value.detach(), *torch.autograd.grad(value, weights)]
    if rank is not None:
        for tensor in found:
            torch.distributed.all_reduce(tensor)
            tensor /= len(ROWS)
    return [*found, loss.memory, loss.log_partition], loss.classes, drawn


def test_two_processes_equal_one_with_the_whole_batch():
    expected, classes, _ = _steps(None)
    one, two = run_processes(_steps)
    assert torch.equal(one[2], two[2])  # the random directions are those of the first process
    for got, own_classes, _ in (one, two):
        assert torch.equal(own_classes, classes)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert all(tensor.abs().max() > 1e-3 for tensor in expected)


# --- With a runner --------------------------------------------------------------------


class StopHook(Hook):
    def before_train_epoch(self, runner):
        if runner.epoch == 2:
            raise InterruptedError


def config(folder, **options):
    config = Config.fromfile(TINY)
    config.model.distiller = Config.fromfile(REPO / 'configs/_base_/methods/crd.py').distiller
    config.model.input_size = 16
    config.model.distiller.distill_losses.loss_crd.num_negatives = 16
    config.merge_from_dict(options)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.work_dir = str(folder)
    config.experiment_name = f'{time.time_ns()}'
    return config


def trained(config, *hooks):
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()


def test_a_resumed_run_goes_on_exactly(tmp_path):
    hooks = {'custom_hooks': [dict(type='EMAHook')]}
    trained(config(tmp_path / 'whole', **hooks))
    with pytest.raises(InterruptedError):
        trained(config(tmp_path / 'stopped', **hooks), StopHook())
    again = config(tmp_path / 'stopped', **hooks, resume=True)
    again.load_from = str(tmp_path / 'stopped/epoch_2.pth')
    trained(again)
    whole, resumed = (
        read_checkpoint(tmp_path / name / 'epoch_3.pth') for name in ('whole', 'stopped')
    )
    for part in ('state_dict', 'ema_state_dict'):
        assert same(whole[part], resumed[part])
    key = 'distiller.distill_losses.loss_crd.'
    assert whole['state_dict'][f'{key}memory'].shape == (2, 40, 128)
    assert (whole['state_dict'][f'{key}classes'] >= 0).all()  # every image was seen
    assert whole['state_dict'][f'{key}steps'] == 15
    # For a model that knows no training data
    model = MODELS.build(config(tmp_path).model)
    model.load_state_dict(resumed['state_dict'])
    assert same(dict(model.state_dict()), dict(resumed['state_dict']))


def refused(saying, *args, **options):
    with pytest.raises(SetupError, match=saying):
        trained(config(*args, **options))


def test_mistakes(tmp_path):
    loss = 'model.distiller.distill_losses.loss_crd'
    off = {'default_hooks.epoch_seed': None}
    refused('do not switch default_hooks.epoch_seed off', tmp_path, **off)
    refused('num_images=41, and the training data have 40', tmp_path, **{f'{loss}.num_images': 41})
    refused('width=64, and the features have 128', tmp_path, **{f'{loss}.width': 64})
    data = config(tmp_path).train_dataloader.dataset
    twice = dict(type='ConcatDataset', datasets=[data, data], _delete_=True)
    refused('is a ConcatDataset', tmp_path, **{'train_dataloader.dataset': twice})
    pipeline = [dict(type='PackInputs', meta_keys=())]
    refused('no sample_idx', tmp_path, **{'train_dataloader.dataset.pipeline': pipeline})
    for name in ('width', 'num_images', 'num_negatives', 'tau'):
        with pytest.raises(SetupError, match=f'{name}=0'):
            CRDLoss(**{name: 0})
    with pytest.raises(SetupError, match='momentum=1'):
        CRDLoss(momentum=1)


def test_a_loop_of_ones_own():
    model = distillation('crd', 'vit', 'resnet').train()
    data = batch(model)
    loss = model.distiller.distill_losses['loss_crd']
    before = loss.memory[:, :4].clone()
    step(model, *data)
    assert (loss.memory[:, :4] != before).all()
    embeddings = model.distiller.connectors['embeddings'].projections
    assert all(projection.weight.grad.any() for projection in embeddings)
