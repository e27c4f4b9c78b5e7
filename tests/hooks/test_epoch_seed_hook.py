import random

import numpy as np
import torch
from helpers import TINY, captured_log
from mmengine.config import Config
from mmengine.runner import Runner

from mmkd_tas.hooks.epoch_seed_hook import SeededPipeline


def draw(data):
    """A pipeline that returns a number of each generator."""
    return random.random(), np.random.rand(), torch.rand(()).item(), data['sample_idx']


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    pipeline = SeededPipeline(draw, seed=1, salt=0)
    first = pipeline({'sample_idx': 5})
    pipeline({'sample_idx': 6})
    assert pipeline({'sample_idx': 5}) == first
    others = [
        pipeline({'sample_idx': 6}),
        SeededPipeline(draw, seed=2, salt=0)({'sample_idx': 5}),
        SeededPipeline(draw, seed=1, salt=1)({'sample_idx': 5}),
    ]
    pipeline.epoch.fill_(1)
    others.append(pipeline({'sample_idx': 5}))
    for generator in range(3):
        values = [first[generator], *(other[generator] for other in others)]
        assert len(set(values)) == 5


def test_the_process_keeps_its_own_randomness():
    pipeline = SeededPipeline(draw, seed=1, salt=0)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    pipeline({'sample_idx': 0})
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def images(workers, persistent, epochs):
    """The training images of some epochs, as a data loader of mmengine gives them."""
    config = Config.fromfile(TINY)
    loader = Runner.build_dataloader(
        {
            **config.train_dataloader,
            'num_workers': workers,
            'persistent_workers': persistent,
            'sampler': dict(type='DefaultSampler', shuffle=False),
            'collate_fn': dict(type='default_collate'),
        },
        seed=0,
    )
    pipeline = loader.dataset.pipeline = SeededPipeline(loader.dataset.pipeline, seed=0, salt=0)
    out = []
    for epoch in epochs:
        pipeline.epoch.fill_(epoch)
        out.append(torch.cat([batch['inputs'] for batch in loader]))
    return out


def test_workers_change_nothing():
    expected = images(0, False, [0, 1, 2])
    assert not torch.equal(expected[0], expected[1])
    for workers, persistent in [(1, False), (2, True), (3, False)]:
        for ours, theirs in zip(images(workers, persistent, [0, 1, 2]), expected, strict=True):
            assert torch.equal(ours, theirs)
    (resumed,) = images(2, True, [2])
    assert torch.equal(resumed, expected[2])


def test_other_data_sets_are_told_of(tmp_path):
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 1
    dataset = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dataset)
    with captured_log() as messages:
        Runner.from_cfg(config).train()
    assert any('RepeatDataset keep their own randomness' in message for message in messages)


def test_each_of_several_data_sets_has_its_own_randomness(tmp_path):
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 2
    config.param_scheduler = None
    dataset = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dataset])
    runner = Runner.from_cfg(config)
    runner.train()
    a, b = runner.train_dataloader.dataset.datasets
    assert not torch.equal(a[0]['inputs'], b[0]['inputs'])
    assert torch.equal(a[0]['inputs'], a[0]['inputs'])
    assert a.pipeline.epoch == b.pipeline.epoch == 1  # of two, from 0
