"""Randomness that depends on the seed and the epoch alone."""

import json
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
from mmpretrain.engine.hooks import SwitchRecipeHook
from torch.utils.data import get_worker_info

from ..errors import SetupError
from ..models.algorithms.teacher_cache import (
    CollateWithAnswers,
    data_fingerprint,
    description,
)
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
        slots: Whether the samples are told their slot of the teacher's cache.
    """

    def __init__(self, dataset: BaseDataset, seed: int, salt: int, slots: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self.salt = salt
        self.slots = slots
        # In shared memory: workers that outlive an epoch see it change.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, idx: int) -> Any:
        """Prepare the sample of an index; see :class:`NumberedRepeats`."""
        images = len(self.dataset)
        repeat, idx = divmod(int(idx), images)
        key = self.seed, int(self.epoch), self.salt, idx
        seed = _derive(*key, repeat) if repeat > 0 else _derive(*key)
        in_worker = get_worker_info() is not None
        if not in_worker:
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            packed = type(self.dataset).prepare_data(self.dataset, idx)
            if self.slots and packed is not None:
                slot = int(self.epoch) * images + idx
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

    Where the model has a :class:`TeacherCache`, it opens it, and the augmentations repeat
    as often as the cache says, alike in all runs. A :class:`CRDLoss` is told how many images
    there are.

    Raises:
        SetupError: Before training, if the model has a teacher cache and the loop or
            the data set is none of those, or mmpretrain's ``SwitchRecipeHook`` changes the
            images; or if it has a CRDLoss, and not one data set of mmpretrain.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.samples: list[SeededSamples] = []
        self.cycle: int | None = None

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
        if getattr(unwrapped(runner.model), 'teacher_cache', None) is not None:
            self._open_cache(runner)
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

    def _open_cache(self, runner: Runner) -> None:
        dataset = runner.train_dataloader.dataset
        if not (
            isinstance(runner.train_loop, EpochBasedTrainLoop) and isinstance(dataset, BaseDataset)
        ):
            raise SetupError(
                'model.teacher_cache needs an epoch-based train_cfg and one data set of '
                f'mmpretrain, and train_dataloader.dataset is a {type(dataset).__name__}: change '
                'them, or leave the cache out'
            )
        for hook in runner.hooks:
            recipes = hook.schedule.values() if isinstance(hook, SwitchRecipeHook) else ()
            if any(recipe.keys() & {'train_pipeline', 'batch_augments'} for recipe in recipes):
                raise SetupError(
                    'model.teacher_cache keeps what the teacher says about images of one pipeline, '
                    'and SwitchRecipeHook (custom_hooks) changes them during the training: leave '
                    'one of the two out'
                )
        model = unwrapped(runner.model)
        device = next(model.parameters()).device
        with runner.optim_wrapper.optim_context(runner.model):
            precision = model.effective_precision(device)
        pipeline = runner.cfg.train_dataloader.dataset.get('pipeline')
        model.teacher_cache.open(
            len(dataset),
            {
                'data set': data_fingerprint(dataset),
                'pipeline': json.dumps(pipeline, sort_keys=True, default=str),
                'data preprocessor': json.dumps(description(model.data_preprocessor)),
                'input of the teacher': model.teacher_inputs.description,
                'precision of the teacher': str(precision),
            },
            runner.max_epochs,
        )
        self.cycle = model.teacher_cache.cycle
        self._take_over(SeededSamples(dataset, 0, 0, slots=True))
        loader = runner.train_dataloader
        loader.collate_fn = CollateWithAnswers(loader.collate_fn, model.teacher_cache.store)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process, and tell the data sets the epoch."""
        self._seed(runner)
        for samples in self.samples:
            samples.epoch.fill_(runner.epoch % (self.cycle or runner.epoch + 1))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed this process once more, now that the data loader has started."""
        # Only a loader that starts new workers draws a number for their seeds.
        if batch_idx == 0:
            self._seed(runner)
        if self.cycle is not None:
            unwrapped(runner.model).teacher_answers = data_batch.pop('teacher_answers', None)

    def _seed(self, runner: Runner) -> None:
        seed = _derive(runner.seed, runner.epoch, get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
