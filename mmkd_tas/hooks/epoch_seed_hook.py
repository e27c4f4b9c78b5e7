"""Randomness that depends on the seed and the epoch alone."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from mmpretrain.datasets import RepeatAugSampler
from torch.utils.data import get_worker_info

from ..models.losses.crd_loss import remember_images
from ..models.utils import unwrapped
from ..registry import HOOKS


def _derive(*key: int) -> int:
    """Return a 32-bit seed that depends on every number of the key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class SeededSamples:
    """Draws the augmentation of a sample from (seed, epoch, index of the sample).

    So it is the same whichever worker process prepares the sample and whatever
    that process did before. It takes the place of the data set's ``prepare_data``, and
    not of its pipeline, which hooks may replace during the training.

    Args:
        dataset: Whose samples are prepared.
        seed: Seed of the run.
        salt: Tells several data sets of a run apart.
        cycle: Number of epochs after which the augmentations repeat; by default they do not.
            Each sample then has the number of its augmentation, among those of all images, in
            its ``cache_slot``.
    """

    def __init__(
        self, dataset: BaseDataset, seed: int, salt: int, cycle: int | None = None
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.salt = salt
        self.cycle = cycle
        # In shared memory: workers that outlive an epoch see it change.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, idx: int) -> Any:
        """Prepare the sample of an index; see :class:`NumberedRepeats`."""
        images = len(self.dataset)
        repeat, idx = divmod(int(idx), images)
        epoch = int(self.epoch) % (self.cycle or int(self.epoch) + 1)
        key = self.seed, epoch, self.salt, idx
        seed = _derive(*key, repeat) if repeat > 0 else _derive(*key)
        in_worker = get_worker_info() is not None
        if not in_worker:
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            packed = type(self.dataset).prepare_data(self.dataset, idx)
            if self.cycle and packed is not None:
                slot = epoch * images + idx
                packed['data_samples'].set_field(slot, 'cache_slot', field_type='metainfo')
            return packed
        finally:
            if not in_worker:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])


class NumberedRepeats:
    """A ``RepeatAugSampler`` whose k-th repeat of image i of N is i + kN.

    Repeats of an image are there for their different augmentations, which the index alone
    could not tell apart.
    """

    def __init__(self, sampler: RepeatAugSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        """Draw the indices of this process."""
        known, images = self.sampler, len(self.sampler.dataset)
        for position, index in enumerate(known):
            # the repeats of an image stand side by side, and the processes take turns
            repeat = (known.rank + position * known.world_size) % known.num_repeats
            yield index + repeat * images

    def __len__(self) -> int:
        """Return the number of indices of this process."""
        return len(self.sampler)


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Make every epoch a function of the run's seed and the epoch's number.

    mmengine saves no state of the random generators, so a resumed run draws
    other augmentations, dropout masks and mixup partners than the uninterrupted
    one; and its worker processes, where they are not persistent, repeat the same
    augmentations in every epoch. With this hook a run that was killed and
    resumed equals the uninterrupted one, whatever the number of workers.

    At the start of each epoch it seeds Python, NumPy and PyTorch (CPU and CUDA),
    and each training sample draws its augmentation from a seed of its own (with
    mmpretrain's ``RepeatAugSampler`` each repeat of it). It
    works with epoch-based loops and with mmpretrain's data sets, alone or
    concatenated; for others it says so in the log.

    Where the model has a :class:`TeacherCache`, the augmentations repeat as often as that
    says, alike in all runs. A :class:`CRDLoss` is told how many images there are.

    Raises:
        SetupError: Before training, if the model has a teacher cache that cannot work here, see
            :meth:`TeacherCache.attach`, or a CRDLoss and not one data set of mmpretrain.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.samples: list[SeededSamples] = []
        self.cache: Any = None

    def before_run(self, runner: Runner) -> None:
        """Tell losses that remember images how many there are, before weights are loaded."""
        if isinstance(runner._train_loop, BaseLoop):
            remember_images(unwrapped(runner.model), runner.train_dataloader.dataset)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the seed of the sampler: it need not be that of the run."""
        seed = getattr(runner.train_dataloader.sampler, 'seed', None)
        checkpoint['meta']['sampler_seed'] = seed

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Give the sampler of a resumed run its seed, the same in all processes."""
        if not runner._resume:
            return
        sampler = runner.train_dataloader.sampler
        meta = checkpoint['meta']
        seed = meta.get('sampler_seed', meta.get('seed'))  # checkpoints of earlier versions
        if hasattr(sampler, 'seed') and seed is not None:
            sampler.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Take over how the data sets prepare their samples."""
        loader = runner.train_dataloader
        self.cache = getattr(unwrapped(runner.model), 'teacher_cache', None)
        if self.cache is not None:
            self.cache.attach(runner)
            # with one seed for all runs, which share what is stored
            self._take_over(SeededSamples(loader.dataset, 0, 0, self.cache.cycle))
            return
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            runner.logger.warning('EpochSeedHook: resuming is exact in epoch-based loops only')
            return
        dataset = loader.dataset
        datasets = dataset.datasets if isinstance(dataset, ConcatDataset) else [dataset]
        for salt, dataset in enumerate(datasets):
            if not isinstance(dataset, BaseDataset):
                runner.logger.warning(
                    f'EpochSeedHook: the augmentations of a {type(dataset).__name__} keep their '
                    'own randomness, so that a resumed run may differ from an uninterrupted one'
                )
                continue
            self._take_over(SeededSamples(dataset, runner.seed, salt))
            if isinstance(loader.sampler, RepeatAugSampler) and dataset is loader.dataset:
                loader.batch_sampler.sampler = NumberedRepeats(loader.sampler)

    def _take_over(self, samples: SeededSamples) -> None:
        samples.dataset.prepare_data = samples
        self.samples.append(samples)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process, and tell the data sets the epoch."""
        self._seed(runner)
        for samples in self.samples:
            samples.epoch.fill_(runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this process once more, now that the data loader has started."""
        # Only a loader that starts new workers draws a number for their seeds.
        if batch_idx == 0:
            self._seed(runner)
        if self.cache is not None:
            self.cache.expect(data_batch)

    def _seed(self, runner: Runner) -> None:
        seed = _derive(runner.seed, runner.epoch, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
