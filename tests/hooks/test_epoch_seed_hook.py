import random

import numpy as np
import torch
from helpers import TINY, captured_log
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from mmkd_tas.hooks.epoch_seed_hook import EpochSeedHook, SeededSamples


class Draws(BaseDataset):
    """Seven samples that are a number of each generator, and their index."""

    def load_data_list(self):
        return [{} for _ in range(7)]

    def __init__(self):
        super().__init__(pipeline=[self.draw])

    @staticmethod
    def draw(data):
        return random.random(), np.random.rand(), torch.rand(()).item(), data['sample_idx']


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    samples = SeededSamples(Draws(), seed=1, salt=0)
    first = samples(5)
    samples(6)
    assert samples(5) == samples(-2) == first
    others = [
        samples(6),
        SeededSamples(Draws(), seed=2, salt=0)(5),
        SeededSamples(Draws(), seed=1, salt=1)(5),
    ]
    samples.epoch.fill_(1)
    others.append(samples(5))
    for generator in range(3):
        values = [first[generator], *(other[generator] for other in others)]
        assert len(set(values)) == 5


def test_the_process_keeps_its_own_randomness():
    samples = SeededSamples(Draws(), seed=1, salt=0)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    samples(0)
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
    samples = loader.dataset.prepare_data = SeededSamples(loader.dataset, seed=0, salt=0)
    out = []
    for epoch in epochs:
        samples.epoch.fill_(epoch)
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
    assert a.prepare_data.epoch == b.prepare_data.epoch == 1  # of two, from 0


def test_a_pipeline_that_is_replaced_is_seeded_too(tmp_path):
    """mmpretrain's SwitchRecipeHook gives the data set a new one after two of four epochs."""
    config = Config.fromfile(TINY)
    config.train_cfg.max_epochs = 4
    config.param_scheduler = config.val_cfg = config.val_dataloader = config.val_evaluator = None
    pipeline = [dict(type='RandomErasing', erase_prob=1.0, mode='rand'), dict(type='PackInputs')]
    config.train_dataloader.collate_fn = dict(type='default_collate')
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    recipe = dict(action_epoch=3, train_pipeline=pipeline)
    config.custom_hooks.append(dict(type='SwitchRecipeHook', schedule=[recipe]))
    config.custom_hooks.append(dict(type='OrderHook', file=''))
    lines = []
    for part in ('whole', 'resumed'):
        config.work_dir = str(tmp_path / part)
        config.custom_hooks[-1]['file'] = str(tmp_path / f'{part}.txt')
        Runner.from_cfg(config).train()
        lines.append((tmp_path / f'{part}.txt').read_text().splitlines())
        config.resume, config.load_from = True, str(tmp_path / 'whole/epoch_2.pth')
        config.train_dataloader.update(num_workers=2, persistent_workers=True)
    whole, resumed = lines
    assert len(whole) == 20
    assert resumed == whole[10:]


def repeats(tmp_path, workers):
    """The images of an epoch by their index, drawn three times each."""
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_dataloader.sampler = dict(type='RepeatAugSampler')
    config.train_dataloader.num_workers = workers
    config.train_dataloader.collate_fn = dict(type='default_collate')
    runner = Runner.from_cfg(config)
    EpochSeedHook().before_train(runner)
    found = {}
    for _ in range(2):  # the same epoch, twice
        for batch in runner.train_dataloader:
            for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
                found.setdefault(int(sample.sample_idx), []).append(image)
    assert len(runner.train_dataloader) == 5
    return found


def test_repeats_of_an_image_are_augmented_each_for_itself(tmp_path):
    found = repeats(tmp_path, 0)
    whole = {index: images for index, images in found.items() if len(images) == 6}
    assert len(whole) == 13  # of the 40 images that an epoch has
    assert set(found) <= set(range(40))
    for images in whole.values():
        assert len({image.numpy().tobytes() for image in images[:3]}) > 1
        assert all(map(torch.equal, images[:3], images[3:]))
    in_workers = repeats(tmp_path, 2)
    for index, images in found.items():
        assert all(map(torch.equal, images, in_workers[index]))
