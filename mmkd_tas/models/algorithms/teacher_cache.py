"""What a teacher says about each image, kept on disk.

From the beginning of a training to its end:

1. :class:`CrossArchDistill` makes a :class:`TeacherCache` of its ``teacher_cache``, which watches
   the teacher's logits and pooled feature, and refuses methods that want more of the teacher.
2. Before the training :class:`EpochSeedHook` attaches it. It opens its files, or creates them. They
   are bound to all that the numbers depend on: weights, images, pipeline, normalisation,
   precision. A cache that was made from anything else is refused.
3. The hook seeds every augmentation by epoch and image, alike in all runs, and writes into each
   sample which of them it is: ``cache_slot``, the row of the files.
4. A worker of the data loader reads the rows of its batch, :class:`CollateWithAnswers`, and the
   hook hands them on, :meth:`TeacherCache.expect`.
5. In the step the model asks for the rows of its images. Those that are missing, or that a crash
   has left half written, are computed by the teacher and stored; then both are the same.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, is_main_process
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.engine.hooks import SwitchRecipeHook
from torch import Tensor, nn

from ...checkpoint import fingerprint
from ...errors import SetupError
from ...stages import StageOutputsRecorder, view_of
from ..utils import unwrapped


class AnswerStore:
    """The files of a cache, which processes share; workers of a loader may read them, too.

    Args:
        path: The folder.
        dtype: Of a row: pooled feature and logits of an image, in full or the largest.
        slots: Number of rows.
        classes: Number of logits of the teacher.
    """

    def __init__(self, path: Path, dtype: np.dtype, slots: int, classes: int) -> None:
        self._args = path, dtype, slots, classes
        self.classes = classes
        self._rows = np.memmap(path / 'records', dtype, 'r+', shape=slots)
        self._checks = np.memmap(path / 'checksums', '<u4', 'r+', shape=slots)

    def __reduce__(self) -> tuple:
        """Map the files anew in another process, instead of sending what is in them."""
        return type(self), self._args

    def read(self, slots: list[int]) -> dict:
        """Return logits ``(N, C)``, pooled features ``(N, D)`` and which rows are missing."""
        rows, stored = self._rows[slots], self._checks[slots]
        missing = [i for i, row in enumerate(rows) if _checksum(row) != stored[i]]
        rows[missing] = np.zeros((), rows.dtype)  # they may hold anything
        return dict(slots=slots, missing=missing, **self.unpacked(rows))

    def write(self, slots: list[int], rows: np.ndarray) -> None:
        """Store rows."""
        for slot, row in zip(slots, rows, strict=True):
            self._rows[slot] = row
            self._checks[slot] = _checksum(row)

    def unpacked(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return logits and pooled features of stored rows, float32."""
        kept, pooled = (torch.from_numpy(rows[k].astype(np.float32)) for k in ('logits', 'pooled'))
        if 'rest' not in rows.dtype.names:
            return dict(logits=kept, pooled=pooled)
        rest = torch.from_numpy(rows['rest'].astype(np.float32))
        share = rest - math.log(self.classes - kept.shape[1])
        logits = share[:, None].repeat(1, self.classes)
        classes = torch.from_numpy(rows['classes'].astype(np.int64))
        return dict(logits=logits.scatter(1, classes, kept), pooled=pooled)


class TeacherCache:
    r"""Logits and pooled features of a frozen teacher, stored once and then replayed.

    Every image has one slot for each of its augmentations, which repeat after as many
    epochs, and are the same in every run: another run with this teacher and these data
    finds them stored, whatever its seed, student and method. Numbers are kept in float16,
    and what is computed goes through the store, too, so that a run that fills the
    cache equals one that replays it. Every slot has a checksum: what a crash left half
    written is computed anew.

    With ``top_k`` only the largest logits z of an image are kept, and the logarithm of
    what the others sum up to; these get equal shares of it, so that
    :math:`p = \mathrm{softmax}(z)` of the kept classes is unchanged. Source for storing
    per augmentation, and for such shares: Shen and Xing, "A Fast Knowledge Distillation
    Framework for Visual Recognition", ECCV 2022.

    Args:
        path: A folder.
        augmentations: Number of epochs after which the augmentations repeat; by default that
            of the whole training, which then sees the images that it would see without a cache.
        top_k: Number of logits to keep of an image; by default all.
        max_gb: The cache does not start if it would need more disk, in 10^9 bytes.

    Raises:
        SetupError: If an argument is not understood.
    """

    def __init__(
        self,
        path: str,
        augmentations: int | None = None,
        top_k: int | None = None,
        max_gb: float = 20.0,
    ) -> None:
        for name, value in (('augmentations', augmentations), ('top_k', top_k)):
            if value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise SetupError(f'model.teacher_cache.{name}: {value!r} is not a number from 1 up')
        self.path = Path(path)
        self.augmentations = augmentations
        self.top_k = top_k
        self.max_gb = max_gb
        self.store: AnswerStore | None = None
        self.answers: dict | None = None  # to the batch to come, where they are known

    def prepare(self, teacher: nn.Module) -> None:
        """Watch a teacher's logits and pooled features."""
        view = view_of(teacher)
        self.classes = view.num_classes
        if self.top_k is not None and self.top_k >= self.classes:
            raise SetupError(
                f'model.teacher_cache.top_k: {self.top_k} is not below the {self.classes} classes; '
                'leave it out'
            )
        self.teacher = teacher
        names = ('pooled',) if self.classes == 0 else ('pooled', 'logits')
        self._recorders = {name: StageOutputsRecorder(name) for name in names}
        for recorder in self._recorders.values():
            recorder.initialize(teacher)
        kept = [('pooled', '<f2', (view.width,)), ('logits', '<f2', (self.top_k or self.classes,))]
        if self.top_k:
            kept += [('classes', '<i4', (self.top_k,)), ('rest', '<f2')]
        self._dtype = np.dtype(kept)

    def attach(self, runner: Runner) -> None:
        """Open the cache for a training, and let its data loader read it.

        Raises:
            SetupError: If the training is not in epochs, the data are not one data set of
                mmpretrain, its ``SwitchRecipeHook`` changes the images, or :meth:`open` fails.
        """
        loader = runner.train_dataloader
        dataset = loader.dataset
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
        with runner.optim_wrapper.optim_context(runner.model):
            precision = model.effective_precision(next(model.parameters()).device)
        pipeline = runner.cfg.train_dataloader.dataset.get('pipeline')
        made_from = {
            'data set': data_fingerprint(dataset),
            'pipeline': json.dumps(pipeline, sort_keys=True, default=str),
            'data preprocessor': json.dumps(description(model.data_preprocessor)),
            'input of the teacher': model.teacher_inputs.description,
            'precision of the teacher': str(precision),
        }
        self.open(len(dataset), made_from, runner.max_epochs)
        loader.collate_fn = CollateWithAnswers(loader.collate_fn, self.store)

    def expect(self, batch: dict) -> None:
        """Take out of a batch what a worker has read for it."""
        self.answers = batch.pop('teacher_answers', None)

    def open(self, images: int, made_from: dict[str, str], epochs: int = 1) -> None:
        """Open the files, or create them.

        Args:
            images: Number of images of the training data.
            made_from: What the stored numbers depend on beside the teacher's weights.
            epochs: Of the training.

        Raises:
            SetupError: If the cache in the folder was made from something else, or there
                is no room for a new one.
        """
        self.cycle = self.augmentations or epochs
        slots = images * self.cycle
        size = slots * (self._dtype.itemsize + 4)
        made_from = {
            'teacher': fingerprint(self.teacher),
            'slots': f'{images} images x {self.cycle} augmentations',
            'numbers': f'{self._dtype.descr}',
            **made_from,
        }
        if is_main_process():
            self._create(size, slots, made_from)
        barrier()
        self.store = AnswerStore(self.path, self._dtype, slots, self.classes)

    def _create(self, size: int, slots: int, made_from: dict[str, str]) -> None:
        if self._exists(made_from):
            return
        if size > self.max_gb * 1e9:
            raise SetupError(
                f'model.teacher_cache: it would take {size / 1e9:.2f} GB, and max_gb is '
                f'{self.max_gb}: raise that, or lower augmentations or top_k'
            )
        # Runs may start together. Each makes a folder of its own, and the first to give it
        # the name wins, so that no file that another has mapped is ever written anew.
        folder = self.path.resolve()
        private = folder.with_name(f'.{folder.name}.{uuid.uuid4().hex}')
        try:
            private.mkdir(parents=True)
            for name, length in (('records', self._dtype.itemsize), ('checksums', 4)):
                with open(private / name, 'xb') as file:
                    # Now, and not when a write into the mapped file fails, is the time to
                    # find out.
                    try:
                        os.posix_fallocate(file.fileno(), 0, slots * length)
                    except OSError as error:
                        raise SetupError(
                            f'model.teacher_cache.path: there is no room for {size / 1e9:.2f} GB '
                            f"in '{self.path}' ({error.strerror})"
                        ) from error
            (private / 'about.json').write_text(json.dumps(made_from, indent=1))
            os.rename(private, folder)
        except OSError as error:
            if not self._exists(made_from):
                raise SetupError(
                    f"model.teacher_cache.path: '{self.path}' cannot become a new cache "
                    f'({error.strerror}): give a folder that does not exist yet'
                ) from error
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def _exists(self, made_from: dict[str, str]) -> bool:
        """Return whether the folder has a cache; it has to be made from the same."""
        about = self.path / 'about.json'
        if not about.is_file():
            return False
        known = json.loads(about.read_text())
        if other := [key for key, value in made_from.items() if known.get(key) != value]:
            raise SetupError(
                f"model.teacher_cache.path: the cache in '{self.path}' was made with another "
                f'{" and ".join(other)}: give another folder, or delete this one'
            )
        return True

    def __call__(self, slots: list[int], forward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Return logits ``(N, C)`` and pooled features ``(N, D)``, float32.

        Args:
            slots: Of the N images.
            forward: Runs the teacher on those images of the batch whose indices it gets.
        """
        found = self.answers
        if found is None or found['slots'] != slots:
            found = self.store.read(slots)
        known, missing = {name: found[name] for name in ('logits', 'pooled')}, found['missing']
        if missing:  # then: another batch, or another process, may have filled them since
            again = self.store.read([slots[i] for i in missing])
            for name, values in known.items():
                values[missing] = again[name]
            missing = [missing[i] for i in again['missing']]
        if missing:
            with contextlib.ExitStack() as stack, torch.no_grad():
                for recorder in self._recorders.values():
                    stack.enter_context(recorder)
                forward(torch.tensor(missing))
            computed = self._packed(
                **{name: r.get_record_data().float() for name, r in self._recorders.items()}
            )
            for recorder in self._recorders.values():
                recorder.reset_data_buffer()
            self.store.write([slots[i] for i in missing], computed)
            for name, values in self.store.unpacked(computed).items():
                known[name][missing] = values
        return known

    def _packed(self, pooled: Tensor, logits: Tensor | None = None) -> np.ndarray:
        rows = np.zeros(len(pooled), self._dtype)
        if logits is None:  # of a teacher without a head, whose rows have room for none
            logits = pooled[:, :0]
        if self.top_k:
            kept, classes = logits.topk(self.top_k, dim=1)
            others = logits.scatter(1, classes, -math.inf)
            rows['classes'] = classes.cpu()
            rows['rest'] = others.logsumexp(1).cpu()
            logits = kept
        largest = torch.finfo(torch.float16).max
        for name, values in (('pooled', pooled), ('logits', logits)):
            rows[name] = values.clamp(-largest, largest).cpu()
        return rows


class CollateWithAnswers:
    """Put what the teacher said of a batch into it, under ``'teacher_answers'``.

    So a worker of the data loader reads it, while the model trains on another batch.

    Args:
        collate: Of the data loader.
        store: What has been said so far.
    """

    def __init__(self, collate: Callable, store: AnswerStore) -> None:
        self.func = collate  # as functools.partial calls it
        self.store = store

    def __call__(self, samples: list) -> dict:
        """Return the batch."""
        batch = self.func(samples)
        slots = [sample.cache_slot for sample in batch['data_samples']]
        return {**batch, 'teacher_answers': self.store.read(slots)}


def _checksum(row: np.void) -> int:
    return zlib.crc32(row.tobytes()) or 1  # 0 is what an empty slot has


def data_fingerprint(dataset) -> str:
    """Return the SHA-256 of a data set's list of samples: paths or pixels, and labels."""
    dataset.full_init()
    if dataset.serialize_data:
        return hashlib.sha256(dataset.data_bytes.tobytes()).hexdigest()
    return hashlib.sha256(repr(dataset.data_list).encode()).hexdigest()


def description(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """Return all that is set in an object such as a data preprocessor, as JSON takes it.

    Where it is (its device) does not count.

    Args:
        value: The object.
        inside: Identities of the objects of which it is a part.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return [str(value.dtype), value.tolist()]
    if hasattr(value, '__qualname__'):  # a function or a class
        return f'{value.__module__}.{value.__qualname__}'
    if id(value) in inside:
        return '...'
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return [[str(key), description(item, inside)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [description(item, inside) for item in value]
    state = getattr(value, '__dict__', {})
    if isinstance(value, nn.Module):
        own = vars(nn.Module())
        parts = [state[name] for name in ('_parameters', '_buffers', '_modules')]
        state = {key: item for key, item in state.items() if key not in own}
        state |= {key: item for part in parts for key, item in part.items()}
    state = {key: item for key, item in state.items() if not isinstance(item, torch.device)}
    return [description(type(value)), description(state, inside)]
