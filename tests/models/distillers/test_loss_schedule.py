import math

import pytest
import torch
from mmengine.logging import MessageHub
from pairs import batch, distillation

from mmkd_tas.errors import SetupError
from mmkd_tas.models.distillers.loss_schedule import LossSchedule


@pytest.mark.parametrize(
    ('cfg', 'factors'),
    [
        (dict(), {0: 1, 99: 1}),
        (dict(warmup=4), {0: 0, 1: 0.25, 4: 1, 9: 1}),
        (dict(begin=2, warmup=2, end=10), {1.9: 0, 2: 0, 3: 0.5, 4: 1, 9.9: 1, 10: 0}),
        (dict(end=10, decay='linear'), {0: 1, 5: 0.5, 7.5: 0.25, 10: 0}),
        (
            dict(warmup=2, end=10, decay='cosine'),
            {2: 1, 6: 0.5, 4: (1 + math.cos(math.pi / 4)) / 2},
        ),
    ],
)
def test_factors(cfg, factors):
    for now, factor in factors.items():
        assert LossSchedule(**cfg).at(now) == pytest.approx(factor)


@pytest.fixture
def hub():
    hub = MessageHub.get_current_instance()
    yield hub
    for key in ('iter', 'max_iters', 'max_epochs'):
        hub.runtime_info.pop(key, None)


def test_a_term_follows_the_training(hub):
    schedules = {'loss_schedules': dict(loss_kd=dict(warmup=4, end=8))}
    model = distillation('kd', 'vit', 'resnet', schedules).eval()
    plain = distillation('kd', 'vit', 'resnet').eval()
    plain.student.load_state_dict(model.student.state_dict())
    plain.teacher.load_state_dict(model.teacher.state_dict())
    data = batch(model)
    full = plain(*data, mode='loss')['distill.loss_kd']
    assert full > 0
    hub.update_info('max_iters', 100)
    hub.update_info('max_epochs', 10)
    for iteration, factor in ((0, 0), (10, 0.25), (25, 0.625), (40, 1), (79, 1), (80, 0)):
        hub.update_info('iter', iteration)
        torch.testing.assert_close(model(*data, mode='loss')['distill.loss_kd'], full * factor)


@pytest.mark.parametrize('epochs', [10, None])  # None: of a training in iterations
def test_a_decay_without_an_end_lasts_for_the_training(hub, epochs):
    schedule = LossSchedule(decay='cosine')
    assert schedule.factor() == 1  # without a runner
    hub.update_info('max_iters', 100)
    hub.update_info('max_epochs', epochs)
    for iteration, factor in ((0, 1), (25, (1 + math.cos(math.pi / 4)) / 2), (50, 0.5)):
        hub.update_info('iter', iteration)
        assert schedule.factor() == pytest.approx(factor)
    assert not schedule.counts_epochs
    assert LossSchedule(warmup=1).counts_epochs


def test_iterations_and_terms_of_one_loss(hub):
    schedule = dict(warmup=4, by_epoch=False)
    model = distillation('hcd', 'vit', 'resnet', {'loss_schedules': dict(loss_hcd=schedule)})
    hub.update_info('iter', 2)
    hub.update_info('max_iters', 100)
    hub.update_info('max_epochs', 10)
    model.eval()
    data = batch(model)
    half = model(*data, mode='loss')
    hub.update_info('iter', 50)
    full = model(*data, mode='loss')
    names = [f'distill.loss_hcd.{term}' for term in ('ce', 'kd', 'sdd', 'ol')]
    assert {name for name in full if name.startswith('distill')} == set(names)
    for name in names:
        torch.testing.assert_close(2 * half[name], full[name])


@pytest.mark.parametrize(
    ('schedules', 'sentence'),
    [
        (dict(loss_x=dict()), 'loss_schedules.loss_x: distill_losses has no such loss'),
        (dict(loss_kd=dict(warmup=5, end=4)), 'do not follow one another'),
        (dict(loss_kd=dict(end=4, decay='exp')), "decay='exp' is neither"),
    ],
)
def test_mistakes(schedules, sentence):
    with pytest.raises(SetupError, match=sentence):
        distillation('kd', 'vit', 'resnet', {'loss_schedules': schedules})
