"""Checkpoints: safe to load, and written whole or not at all."""

import _compat_pickle
import codecs
import collections
import contextlib
import functools
import inspect
import io
import os
import pickle
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler
from mmengine.runner import Runner, checkpoint

from . import around, patch, replace, source

_PICKLED_METHODS = {
    HistoryBuffer: ('current', 'max', 'mean', 'min'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _getattr(owner: type, name: str) -> Callable:
    """Stand in for ``getattr`` in a checkpoint.

    mmengine pickles a few methods as ``getattr(class, name)``. Nothing else may
    be fetched this way.
    """
    if name in _PICKLED_METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'GLOBAL getattr({owner}, {name!r})')


def _safe_globals() -> dict[str, Any]:
    """Return ``{global in the pickle: object}`` of what mmengine writes."""
    names = {
        'builtins.getattr': _getattr,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
    }
    for owner in _PICKLED_METHODS:
        names[f'{owner.__module__}.{owner.__name__}'] = owner
    for code in '?bhilqBHILQefd':
        dtype = type(np.dtype(code))
        names[f'numpy.dtypes.{dtype.__name__}'] = dtype
    # NumPy 2 renamed its private package; a file may come from either side.
    for package in ('numpy.core', 'numpy._core'):
        names[f'{package}.multiarray._reconstruct'] = np.ndarray(0).__reduce__()[0]
        names[f'{package}.multiarray.scalar'] = np.float64(0).__reduce__()[0]
    return names


class _Unknown:
    """What no list of safe types can have."""


def _loads(value: Any) -> bool:
    """Return whether ``torch.load`` accepts what ``torch.save`` has written."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with contextlib.suppress(pickle.UnpicklingError), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        torch.load(file)
        return True
    return False


@patch(lambda: not _loads(HistoryBuffer([0.5], [1])))
def safe_checkpoints() -> None:
    """mmengine 0.10.7, logging/history_buffer.py:8: its checkpoints pass safe loading."""
    torch.serialization.add_safe_globals([(v, k) for k, v in _safe_globals().items()])


@patch(lambda: _loads(_Unknown()))
def safe_loading() -> None:
    """torch 2.1.2, serialization.py:856: torch.load before 2.6 refuses unknown globals, too."""
    from torch import _weights_only_unpickler as torch_unpickler

    # What the list of PyTorch 2.6 has and the earlier ones lack.
    plain = (bytearray, complex, set, collections.Counter, codecs.encode)
    allowed = {f'{o.__module__}.{o.__qualname__}': o for o in plain} | _safe_globals()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            # torch.save writes the module names of Python 2
            full = f'{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}'
            known = torch_unpickler._get_allowed_globals() | allowed
            if full not in known:
                raise pickle.UnpicklingError(f'Weights only load failed: GLOBAL {full}')
            return known[full]

    safe_pickle = ModuleType('safe_pickle')
    safe_pickle.Unpickler = Unpickler
    safe_pickle.load = lambda file, **kwargs: Unpickler(file, **kwargs).load()

    @around(torch, 'load')
    def safe_load(
        load, f, map_location=None, pickle_module=None, *, weights_only=None, **kwargs
    ) -> Any:
        if pickle_module is None and weights_only is not False:
            return load(f, map_location, safe_pickle, weights_only=False, **kwargs)
        return load(f, map_location, pickle_module, weights_only=bool(weights_only), **kwargs)


@patch(lambda: not inspect.signature(checkpoint.load_url).parameters['weights_only'].default)
def safe_downloads() -> None:
    """mmengine 0.10.7, runner/checkpoint.py:371: what is downloaded is loaded safely, too."""
    replace(checkpoint.load_url, functools.partial(checkpoint.load_url, weights_only=True))


@patch(lambda: 'fromstring' in source(Runner.resume))
def no_code_in_resume() -> None:
    """mmengine 0.10.7, runner/runner.py:2028: resuming runs no config text in a checkpoint."""

    @around(Runner, 'load_checkpoint')
    def load_checkpoint(load: Callable, *args: Any, **kwargs: Any) -> dict:
        loaded = load(*args, **kwargs)
        # Runner.resume() hands meta['config'], if there is one, to exec().
        loaded.get('meta', {}).pop('config', None)
        return loaded


def write_whole(data: bytes, path: str | Path) -> None:
    """Write a file so that a reader finds the old or the new one, never a part.

    Several processes may write the same file at once: the last one's stays.

    Raises:
        OSError: If the folder cannot be written or the disk is full, with the name of
            the file; the old file is then untouched and no temporary file stays behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.part')
    try:
        with open(temporary, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise
    # What a killed process left; after a day nobody is still writing it.
    for other in path.parent.glob(f'.*.{"?" * 32}.part'):
        with contextlib.suppress(OSError):
            if other.stat().st_mtime < time.time() - 86400:
                other.unlink()


@patch(lambda: "open(filepath, 'wb')" in source(LocalBackend.put))
def whole_checkpoints() -> None:
    """mmengine 0.10.7, fileio/backends/local_backend.py:60: files are written whole or not."""
    LocalBackend.put = lambda self, obj, filepath: write_whole(obj, filepath)


class _RemoveLater:
    """A file backend that keeps a list of what to remove once the new file is whole."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.pending: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        if name in ('remove', 'rmtree'):
            remove = getattr(self.backend, name)
            return lambda path: self.pending.append(functools.partial(remove, path))
        return getattr(self.backend, name)


@patch(lambda: '.remove(' in source(CheckpointHook._save_checkpoint_with_step).split('.save_')[0])
def old_checkpoints_stay() -> None:
    """mmengine 0.10.7, hooks/checkpoint_hook.py:413: old files go when the new one is whole."""

    def remove_afterwards(save: Callable, self: CheckpointHook, *args: Any, **kwargs: Any) -> None:
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            save(self, *args, **kwargs)
        finally:
            self.file_backend = backend
        for remove in later.pending:
            remove()

    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        around(CheckpointHook, name)(remove_afterwards)
