"""Patches for the released OpenMMLab packages on a current PyTorch.

mmengine 0.10.7, mmcv 2.1.0, mmpretrain 1.2.0 and mmrazor 1.0.0 are the last
releases, and each breaks somewhere on PyTorch 2. Every function marked with
:func:`patch` repairs one thing, says what, and does nothing where nothing is
broken. ``import mmkd_tas`` applies them all once; :func:`applied` lists those
that were needed.

The patches replace names inside mmengine and mmpretrain, and add modules for
MMRazor. PyTorch itself is touched in two places only, both of them defaults: before
version 2.6 ``torch.load`` gets the safe one of the later versions, and activation
checkpointing the one that PyTorch recommends (``use_reentrant=False``).
"""

import _compat_pickle
import codecs
import collections
import contextlib
import copy
import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import logging
import os
import pickle
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
import torch.utils.checkpoint as activations
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer, MessageHub, print_log
from mmengine.model import is_model_wrapper
from mmengine.optim.scheduler import OneCycleParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import LogProcessor, Runner
from mmengine.utils import digit_version

from .errors import SetupError

_patches: list[Callable[[], bool]] = []
_applied: dict[str, str] = {}


def patch(function: Callable[[], bool]) -> Callable[[], bool]:
    """Register a patch: a function that returns whether it was needed."""
    _patches.append(function)
    return function


def apply() -> None:
    """Apply every patch that this environment needs; a second call does nothing."""
    for function in _patches:
        if function.__name__ not in _applied and function():
            _applied[function.__name__] = function.__doc__.splitlines()[0]


def applied() -> dict[str, str]:
    """Return ``{name: what it patches}`` of the patches in force."""
    return dict(_applied)


def _replace(old: Any, new: Any) -> None:
    """Rebind ``old`` to ``new`` in every mmengine module that imported it by name."""
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] == 'mmengine' and module is not None:
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


# --- Checkpoints: safe to load -------------------------------------------------


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


@patch
def safe_checkpoints() -> bool:
    """mmengine: checkpoints load with PyTorch's safe loading on, by an allow-list."""
    allowed = _safe_globals()
    if digit_version(torch.__version__) >= digit_version('2.6'):
        torch.serialization.add_safe_globals([(v, k) for k, v in allowed.items()])
    else:
        torch.load = _safe_load(torch.load, allowed)
    _replace(
        torch.hub.load_state_dict_from_url,
        functools.partial(torch.hub.load_state_dict_from_url, weights_only=True),
    )
    return True


def _safe_load(load: Callable, allowed: dict[str, Any]) -> Callable:
    """Give ``torch.load`` before 2.6 the default of 2.6: refuse unknown globals."""
    from torch import _weights_only_unpickler as torch_unpickler

    # What the list of PyTorch 2.6 has and the earlier ones lack.
    plain = (bytearray, complex, set, collections.Counter, codecs.encode)
    allowed |= {f'{o.__module__}.{o.__qualname__}': o for o in plain}

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

    @functools.wraps(load)
    def safe_load(f, map_location=None, pickle_module=None, *, weights_only=None, **kwargs):
        if pickle_module is None and weights_only is not False:
            return load(f, map_location, safe_pickle, weights_only=False, **kwargs)
        return load(f, map_location, pickle_module, weights_only=bool(weights_only), **kwargs)

    return safe_load


@patch
def no_code_in_resume() -> bool:
    """mmengine: resuming no longer executes the config text inside a checkpoint."""
    original = Runner.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(self, *args, **kwargs):
        checkpoint = original(self, *args, **kwargs)
        # Runner.resume() hands meta['config'], if there is one, to exec().
        checkpoint.get('meta', {}).pop('config', None)
        return checkpoint

    Runner.load_checkpoint = load_checkpoint
    return True


# --- Checkpoints: whole or not at all ------------------------------------------


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


class _RemoveLater:
    """A file backend that keeps a list of what to remove once the new file is whole."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.pending: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.pending.append(functools.partial(self.backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.pending.append(functools.partial(self.backend.rmtree, path))


@patch
def whole_checkpoints() -> bool:
    """mmengine: checkpoints are written whole, and old ones removed only afterwards."""
    from mmengine.fileio import LocalBackend
    from mmengine.hooks import CheckpointHook

    LocalBackend.put = lambda self, obj, filepath: write_whole(obj, filepath)

    def remove_afterwards(save: Callable) -> Callable:
        @functools.wraps(save)
        def wrapped(self, *args, **kwargs):
            backend = self.file_backend
            self.file_backend = later = _RemoveLater(backend)
            try:
                save(self, *args, **kwargs)
            finally:
                self.file_backend = backend
            for remove in later.pending:
                remove()

        return wrapped

    for name in ('_save_checkpoint_with_step', '_save_best_checkpoint'):
        setattr(CheckpointHook, name, remove_afterwards(getattr(CheckpointHook, name)))
    return True


def _add_timm_prefix(state_dict: dict, prefix: str, *args: Any) -> None:
    """Put ``model.`` into the keys of a wrapped model, unless it is there already.

    Its hooks strip it when the model is saved and add it when it is loaded, but
    inside another model PyTorch ignores the stripped copy.
    """
    own = [key for key in state_dict if key.startswith(prefix)]
    if not any(key.startswith(f'{prefix}model.') for key in own):
        for key in own:
            state_dict[f'{prefix}model.{key[len(prefix) :]}'] = state_dict.pop(key)


@patch
def timm_weights() -> bool:
    """mmpretrain: models of timm and Hugging Face keep and find their pretrained weights."""
    with warnings.catch_warnings():
        # mmcv-lite lacks an operator that no classifier uses.
        warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention')
        from mmpretrain.models import HuggingFaceClassifier, TimmClassifier

    # When a training starts, mmengine calls init_weights() of the wrapped model,
    # which draws new weights even where pretrained=True has loaded some.
    def initialised_by_its_library(create: Callable) -> Callable:
        @functools.wraps(create)
        def wrapped(self, *args, **kwargs):
            create(self, *args, **kwargs)
            self.model.is_init = True

        return wrapped

    for kind in (TimmClassifier, HuggingFaceClassifier):
        kind._add_state_dict_prefix = staticmethod(_add_timm_prefix)
        kind.__init__ = initialised_by_its_library(kind.__init__)
    return True


@patch
def batches_of_any_size_in_windows() -> bool:
    """mmpretrain: exported Swin models take batches of any size.

    ``ShiftWindowMSA.window_reverse`` (models/utils/attention.py of 1.2.0) computes the number of
    images as a Python number, which stays in the graph as a constant.
    """
    from mmpretrain.models.utils.attention import ShiftWindowMSA

    def window_reverse(windows: torch.Tensor, H: int, W: int, window_size: int) -> torch.Tensor:  # noqa: N803
        across = (H // window_size, W // window_size)
        x = windows.unflatten(0, (-1, *across)).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, H, W, windows.shape[-1])

    ShiftWindowMSA.window_reverse = staticmethod(window_reverse)
    return True


# --- Optimizers ----------------------------------------------------------------


@patch
def flat_scalars() -> bool:
    """mmengine: flat_decay_mult holds for scalars, such as a learned temperature, too."""
    from mmengine.optim import DefaultOptimWrapperConstructor

    original = DefaultOptimWrapperConstructor.add_params

    @functools.wraps(original)
    def add_params(self, params: list[dict], *args, **kwargs) -> None:
        original(self, params, *args, **kwargs)
        factor = self.paramwise_cfg.get('flat_decay_mult')
        if self.base_wd is None or factor is None:
            return
        for group in params:  # a custom key that matched has set its own
            if group['params'][0].ndim == 0:
                group.setdefault('weight_decay', self.base_wd * factor)

    DefaultOptimWrapperConstructor.add_params = add_params
    return True


# --- Long trainings ------------------------------------------------------------

_KEPT = 2000  # values of a history, at least: every epoch's accuracy is among them


def _appended(buffer: HistoryBuffer, name: str, value: float) -> np.ndarray:
    """Return a history with one more value, and without the oldest if it gets too long.

    It is a view of an array that has room for as many values again, so that values are
    copied only when that is full.
    """
    history = getattr(buffer, name)
    dtype = np.promote_types(history.dtype, np.asarray(value).dtype)
    rooms = vars(buffer).setdefault('_rooms', {})
    view, room, end = rooms.get(name, (None, None, None))
    if view is not history or end == len(room) or room.dtype != dtype:
        end = len(history)
        room = np.empty(2 * end + 16, dtype)
        room[:end] = history
    room[end] = value
    begin = end - min(len(history), buffer.max_length - 1)
    rooms[name] = room[begin : end + 1], room, end + 1
    return rooms[name][0]


def _windows(processor: LogProcessor, runner: Runner) -> Callable[[str], int | None]:
    """Return how far back a log reads a scalar, by its key; None is all of it."""
    loops = (runner._train_loop, runner._val_loop, runner._test_loop)
    loaders = [loop.dataloader for loop in loops if hasattr(loop, 'dataloader')]
    if type(processor) is not LogProcessor or not all(hasattr(ld, '__len__') for ld in loaders):
        return lambda key: None
    epoch = max(map(len, loaders), default=0)

    def window(key: str) -> int | None:
        longest = max(_KEPT, processor.window_size, epoch)
        for cfg in processor.custom_cfg:
            if key == cfg['data_src'] or key.endswith('/' + cfg['data_src']):
                size = cfg.get('window_size')
                if size in (None, 'global'):
                    return None
                longest = max(longest, epoch if size == 'epoch' else size)
        return longest

    return window


@patch
def histories_of_scalars() -> bool:
    """mmengine: logging takes no longer, and checkpoints no more room, as a training goes on."""
    probe = HistoryBuffer([0.0], [1])
    probe.update(0.0)
    if probe.data[0].base is not None:
        return False

    def update(self, log_val: float, count: int = 1) -> None:
        if not isinstance(log_val, int | float) or not isinstance(count, int | float):
            raise TypeError(
                f'log_val and count are numbers, and not {type(log_val)} and {type(count)}'
            )
        for name, value in (('_log_history', log_val), ('_count_history', count)):
            setattr(self, name, _appended(self, name, value))

    HistoryBuffer.update = update
    state = HistoryBuffer.__getstate__
    HistoryBuffer.__getstate__ = lambda self: {
        key: value for key, value in state(self).items() if key != '_rooms'
    }
    log = LogProcessor.get_log_after_iter

    @functools.wraps(log)
    def get_log_after_iter(self, runner, *args, **kwargs):
        logged = log(self, runner, *args, **kwargs)
        window = _windows(self, runner)
        for key, buffer in runner.message_hub.log_scalars.items():
            # Not what the checkpoint says: the run may be resumed with other windows.
            buffer.max_length = window(key) or HistoryBuffer().max_length
            if len(buffer.data[0]) > buffer.max_length:
                for name in ('_log_history', '_count_history'):
                    setattr(buffer, name, getattr(buffer, name)[-buffer.max_length :].copy())
        return logged

    LogProcessor.get_log_after_iter = get_log_after_iter
    return True


# --- Steps that do not wait for a GPU -------------------------------------------

_MOST_UNREAD = 10_000


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device, without waiting for what a GPU still has to do."""
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        tensor = tensor.pin_memory()  # else the copy waits, whatever non_blocking says
    return tensor.to(device, non_blocking=True)


@patch
def losses_read_when_logged() -> bool:
    """mmengine: what a step returns is read when it is logged, not after every step."""
    # Each value that is read makes a GPU and its program wait for each other.
    if isinstance(vars(MessageHub).get('_log_scalars'), property):
        return False
    update = MessageHub.update_scalar

    def update_scalar(self, key: str, value: Any, count: int = 1, resumed: bool = True) -> None:
        unread = vars(self).setdefault('_unread', [])
        if torch.is_tensor(value) and value.numel() == 1:
            value = value.detach().reshape(())
        elif not unread:
            update(self, key, value, count, resumed)
            return
        unread.append((key, value, count, resumed))
        if len(unread) == _MOST_UNREAD:
            read(self)

    def read(self) -> dict:
        unread = vars(self).pop('_unread', ())
        tensors: dict[torch.device, list] = {}
        for _, value, *_ in unread:
            if torch.is_tensor(value):
                tensors.setdefault(value.device, []).append(value.double())
        # in one copy
        found = {device: iter(torch.stack(parts).tolist()) for device, parts in tensors.items()}
        for key, value, *more in unread:
            number = next(found[value.device]) if torch.is_tensor(value) else value
            update(self, key, number, *more)
        return vars(self)['_log_scalars']

    MessageHub.update_scalar = update_scalar
    MessageHub._log_scalars = property(
        read, lambda self, scalars: vars(self).update(_log_scalars=scalars)
    )
    return True


@patch
def batches_without_waiting() -> bool:
    """mmpretrain: images and labels go to a GPU without a wait for its work before."""
    from mmpretrain.models import ClsDataPreprocessor
    from mmpretrain.structures import DataSample

    forward = ClsDataPreprocessor.forward

    def forward_without_waiting(self, data: dict, training: bool = False) -> dict:
        if self.device.type != 'cpu':
            self._non_blocking = True  # for images that the loader has in page-locked memory
            samples = data.get('data_samples') or []
            for name in ('gt_label', 'gt_score'):
                if all(isinstance(s, DataSample) and name in s for s in samples):
                    parts = [sample.get(name) for sample in samples]
                    whole = sent(torch.cat(parts), self.device)
                    parts = whole.split([len(part) for part in parts])
                    for sample, part in zip(samples, parts, strict=True):
                        sample.set_field(part, name, dtype=torch.Tensor)
        return forward(self, data, training)

    ClsDataPreprocessor.forward = forward_without_waiting
    return True


@patch
def one_hot_without_waiting() -> bool:
    """mmpretrain: a loss that makes one-hot vectors of labels does not read them first."""
    from mmpretrain.models.losses.utils import convert_to_one_hot as waiting

    if 'item()' not in inspect.getsource(waiting):
        return False

    def convert_to_one_hot(targets: torch.Tensor, classes: int) -> torch.Tensor:
        # which tells labels that are too large, on a GPU without a wait
        return torch.nn.functional.one_hot(targets.long().squeeze(-1), classes)

    for name, module in [*sys.modules.items()]:
        if name.startswith('mmpretrain.') and vars(module).get(waiting.__name__) is waiting:
            setattr(module, waiting.__name__, convert_to_one_hot)
    return True


# --- Images that cannot be read ------------------------------------------------


def _found_by_decoder(error: Exception) -> bool:
    """Return whether an image's bytes are at fault, and not its file, the machine or the config."""
    trace = list(traceback.walk_tb(error.__traceback__))
    if not any(frame.f_code is mmcv.imfrombytes.__code__ for frame, _ in trace):
        # OpenCV tells of most by returning nothing, which mmcv asserts it has not
        return isinstance(error, AssertionError) and 'failed to load image' in str(error)
    if isinstance(error, cv2.error):
        return error.code != cv2.Error.StsNoMem
    if isinstance(error, ImportError | MemoryError) or getattr(error, 'errno', None) is not None:
        return False
    # mmcv itself refuses settings, as an unknown imdecode_backend
    return trace[-1][0].f_globals.get('__name__') != mmcv.imfrombytes.__module__


@patch
def broken_images() -> bool:
    """mmcv: LoadImageFromFile names a broken image, and ignore_empty=True passes over it alone."""
    from mmcv.transforms import LoadImageFromFile

    original = LoadImageFromFile.transform
    passed_over = set()

    @functools.wraps(original)
    def transform(self, results: dict) -> dict | None:
        strict = copy.copy(self)
        strict.ignore_empty = False  # which would pass over a missing file, too
        try:
            return original(strict, results)
        except Exception as error:
            if not _found_by_decoder(error):
                raise
            path = results['img_path']
            if not self.ignore_empty:
                raise SetupError(
                    f"'{path}' cannot be read as an image: replace it, or take it out of the data"
                ) from error
            if path not in passed_over:
                passed_over.add(path)
                message = f"'{path}' cannot be read as an image: another one takes its place"
                print_log(message, 'current', logging.WARNING)
            return None

    LoadImageFromFile.transform = transform
    return True


# --- Errors of hooks -----------------------------------------------------------


@patch
def tracebacks_of_hooks() -> bool:
    """mmengine: a TypeError in a hook keeps its traceback."""

    def call_hook(self, fn_name: str, **kwargs) -> None:
        # mmengine's raises another one in its place, "from None"
        for hook in self._hooks:
            if hasattr(hook, fn_name):
                getattr(hook, fn_name)(self, **kwargs)

    Runner.call_hook = call_hook
    return True


# --- Hooks that a model brings -------------------------------------------------

# What keeps a training safe, by the names that these hooks have in `default_hooks`.
SAFETY_HOOKS = {
    'preflight': dict(type='mmkd_tas.PreflightHook'),
    'epoch_seed': dict(type='mmkd_tas.EpochSeedHook'),
    'finite_loss': dict(type='mmkd_tas.FiniteLossHook'),
    'progress': dict(type='mmkd_tas.ProgressHook'),
}


def add_hooks(default_hooks: dict | None, brought: dict[str, dict]) -> dict:
    """Return a config's ``default_hooks`` with those that are brought.

    Under the same name the config may give another hook, arguments of the one that is
    brought, or None to do without.
    """
    # These first: of the same type, the one that is registered last stays.
    hooks = {**brought, **(default_hooks or {})}
    for name, cfg in brought.items():
        if isinstance(hooks[name], dict) and 'type' not in hooks[name]:
            hooks[name] = {**cfg, **hooks[name]}
    return hooks


@patch
def hooks_of_models() -> bool:
    """mmengine: a model brings the hooks that it needs, whatever the config's custom_hooks."""
    register_hooks, register_hook = Runner.register_hooks, Runner.register_hook

    @functools.wraps(register_hooks)
    def with_those_of_the_model(self, default_hooks=None, custom_hooks=None) -> None:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        brought = getattr(model, 'default_hooks', {})
        hooks = add_hooks(default_hooks, brought)
        for name in {*SAFETY_HOOKS, *brought}:
            if name in hooks and hooks[name] is None:  # mmengine knows this of its own alone
                del hooks[name]
        register_hooks(self, hooks, custom_hooks)

    @functools.wraps(register_hook)
    def in_place_of_its_kind(self, hook, priority=None) -> None:
        if isinstance(hook, dict):
            hook = dict(hook)
            given = hook.pop('priority', None)
            priority = given if priority is None else priority
            hook = HOOKS.build(hook)
        for cfg in SAFETY_HOOKS.values():
            kind = HOOKS.get(cfg['type'])
            if isinstance(hook, kind):  # the config's own, or a script's
                self._hooks = [other for other in self._hooks if not isinstance(other, kind)]
        register_hook(self, hook, priority)

    Runner.register_hooks, Runner.register_hook = with_those_of_the_model, in_place_of_its_kind
    return True


# --- Packages that are gone ----------------------------------------------------


@patch
def package_lookup() -> bool:
    """mmengine: `mmpretrain::...` configs resolve without pkg_resources, editable ones too."""
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.utils import package_utils

    modules = {package: module for module, package in MODULE2PACKAGE.items()}

    def found(package: str) -> str | None:
        spec = importlib.util.find_spec(modules.get(package, package))
        return spec and spec.origin

    def is_installed(package: str) -> bool:
        try:
            metadata.distribution(package)
        except metadata.PackageNotFoundError:
            return found(package) is not None
        return True

    def get_installed_path(package: str) -> str:
        # of the package that an import finds, which need not be where pip has put one
        if (origin := found(package)) is None:
            raise ModuleNotFoundError(f'the package {package} is not installed')
        return os.path.dirname(origin)

    for new in (is_installed, get_installed_path):
        _replace(getattr(package_utils, new.__name__), new)
    return True


@patch
def configs_of_this_package() -> bool:
    """mmengine: `mmkd_tas::...` and read_base() find the configs of this package."""
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.registry import DefaultScope

    MODULE2PACKAGE['mmkd_tas'] = 'mmkd_tas'
    get_path, overwrite = Config._get_cfg_path, DefaultScope.overwrite_default_scope
    parse = Config._parse_lazy_import

    def written_for(scope: str | None) -> str | None:
        # that of what they inherit and of their default_scope
        return 'mmpretrain' if scope == 'mmkd_tas' else scope

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = get_path(cfg_path, filename)
        return path, written_for(scope)

    def parse_base(filename: str) -> tuple[dict, set]:
        if Config._is_lazy_import(filename):
            return parse(filename)
        # mmengine refuses one that inherits by _base_, which is a matter of how it is read
        return Config._dict_to_config_dict_lazy(Config._file2dict(filename)[0]), set()

    Config._get_cfg_path = staticmethod(get_cfg_path)
    Config._parse_lazy_import = staticmethod(parse_base)
    DefaultScope.overwrite_default_scope = staticmethod(lambda scope: overwrite(written_for(scope)))
    return True


class _Renamed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import ``mmcls.x.y`` as the module ``mmpretrain.x.y``."""

    aliases = {
        'mmpretrain.structures': {'ClsDataSample': 'DataSample'},
        'mmpretrain.datasets.transforms.formatting': {'PackClsInputs': 'PackInputs'},
    }

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition('.')[0] != 'mmcls':
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec):
        name = 'mmpretrain' + spec.name[len('mmcls') :]
        module = importlib.import_module(name)
        for old, new in self.aliases.get(name, {}).items():
            setattr(module, old, getattr(module, new))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = module.__spec__.loader_state


@patch
def mmcls_is_mmpretrain() -> bool:
    """mmrazor: mmcls, the old name of MMPretrain, means it in imports and in configs."""
    if importlib.util.find_spec('mmcls'):
        return False
    from mmengine.config.utils import MODULE2PACKAGE
    from mmengine.registry import DefaultScope, Registry

    sys.meta_path.insert(0, _Renamed())
    MODULE2PACKAGE['mmcls'] = 'mmpretrain'  # _base_ = ['mmcls::...']

    def renamed(scope: str | None) -> str | None:
        return 'mmpretrain' if scope == 'mmcls' else scope

    split, overwrite = Registry.split_scope_key, DefaultScope.overwrite_default_scope

    def split_scope_key(key: str) -> tuple[str | None, str]:  # type='mmcls.X'
        scope, name = split(key)
        return renamed(scope), name

    Registry.split_scope_key = staticmethod(split_scope_key)
    # _scope_='mmcls'
    DefaultScope.overwrite_default_scope = staticmethod(lambda scope: overwrite(renamed(scope)))
    return True


class _Unavailable(type):
    """A class of which every use raises one clear sentence."""

    def _refuse(cls, *args, **kwargs):
        raise NotImplementedError(
            f"MMRazor's quantization ({cls.__name__}) needs PyTorch 1.13, and this is "
            f'PyTorch {torch.__version__}; its distillation, pruning and search work.'
        )

    __call__ = __getitem__ = _refuse

    def __getattr__(cls, name):
        if name.startswith('__'):
            raise AttributeError(name)
        cls._refuse()


@patch
def quantization() -> bool:
    """mmrazor: imports without its quantization, which needs names PyTorch removed."""
    from torch.ao.quantization import fuser_method_mappings

    if hasattr(fuser_method_mappings, 'reverse2'):
        return False

    class StandIn(ModuleType):
        __path__: Iterable[str] = ()
        __all__: Iterable[str] = ()

        def __getattr__(self, name: str) -> type:
            if name.startswith('__'):
                raise AttributeError(name)
            return _Unavailable(name, (), {})

    name = 'mmrazor.structures.quantization'
    sys.modules[name] = StandIn(name)
    return True


# --- Several processes ---------------------------------------------------------


@patch
def sharded_optimizer_is_saved() -> bool:
    """mmengine: a run with ZeroRedundancyOptimizer saves checkpoints, where it used to hang."""
    from mmengine.optim import ZeroRedundancyOptimizer

    # All processes have to give their parts, and mmengine asks only the first for them.
    del ZeroRedundancyOptimizer.state_dict
    save = Runner.save_checkpoint

    @functools.wraps(save)
    def save_checkpoint(self, *args, **kwargs):
        optimizer = getattr(self.optim_wrapper, 'optimizer', None)
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer.consolidate_state_dict()
        save(self, *args, **kwargs)

    Runner.save_checkpoint = save_checkpoint
    return True


@patch
def whole_sync_bn() -> bool:
    """mmengine: sync_bn keeps hooks on BatchNorm layers, and the activations of timm's."""
    from mmengine.model import convert_sync_batchnorm
    from timm.layers import BatchNormAct2d
    from timm.layers import convert_sync_batchnorm as convert_with_activation

    # mmengine's function calls itself by this name for the children of a module.
    @functools.wraps(convert_sync_batchnorm)
    def convert(module: torch.nn.Module, *args, **kwargs) -> torch.nn.Module:
        if isinstance(module, BatchNormAct2d):
            converted = convert_with_activation(module)
        else:
            converted = convert_sync_batchnorm(module, *args, **kwargs)
        for name, value in vars(module).items():
            if name.startswith('_forward_'):
                setattr(converted, name, value)
        return converted

    _replace(convert_sync_batchnorm, convert)
    return True


@patch
def checkpointing_by_hooks() -> bool:
    """mmpretrain: with_cp=True trains in several processes, also stages that run twice a step."""
    # mmpretrain, mmcv and mmengine do not choose between PyTorch's two kinds, and the one they
    # get runs a backward pass of its own: DDP then meets a shared weight more than once.
    needed = False
    for function in (activations.checkpoint, activations.checkpoint_sequential):
        parameters = inspect.signature(function).parameters
        if parameters['use_reentrant'].default is False:
            continue
        needed = True
        # In place, for those who have imported the function by its name.
        function = inspect.unwrap(function)
        if parameters['use_reentrant'].kind is inspect.Parameter.KEYWORD_ONLY:
            function.__kwdefaults__['use_reentrant'] = False
        else:
            named = [p.name for p in parameters.values() if p.default is not p.empty]
            at = named.index('use_reentrant')
            defaults = function.__defaults__
            function.__defaults__ = (*defaults[:at], False, *defaults[at + 1 :])
    return needed


# --- Machines without a GPU ----------------------------------------------------


@patch
def cpu_distributed() -> bool:
    """mmengine: several processes train on a machine without a GPU (gloo)."""
    if get_device() != 'cpu':
        return False
    from mmengine.dist import utils
    from mmengine.model import MMDistributedDataParallel

    def without_gpu(init: Callable) -> Callable:
        @functools.wraps(init)
        def init_gloo(backend: str, **kwargs) -> None:
            set_device = torch.cuda.set_device
            torch.cuda.set_device = lambda device: None  # only while mmengine would call it
            try:
                init('gloo', **kwargs)
            finally:
                torch.cuda.set_device = set_device

        return init_gloo

    for launcher in ('pytorch', 'slurm', 'mpi'):
        name = f'_init_dist_{launcher}'
        setattr(utils, name, without_gpu(getattr(utils, name)))
    original = MMDistributedDataParallel.__init__

    @functools.wraps(original)
    def without_device(self, *args, device_ids=None, **kwargs):
        original(self, *args, **kwargs)

    MMDistributedDataParallel.__init__ = without_device
    return True


@patch
def cpu_amp() -> bool:
    """mmengine: mixed precision (bfloat16) trains on a machine without a GPU."""
    if get_device() != 'cpu':
        return False
    from mmengine.optim.optimizer import amp_optimizer_wrapper

    # Its constructor refuses CPUs, though its autocast supports them. bfloat16
    # has the range of float32 and needs no loss scaling.
    amp_optimizer_wrapper.is_cuda_available = lambda: True
    amp_optimizer_wrapper.GradScaler = functools.partial(
        amp_optimizer_wrapper.GradScaler, enabled=False
    )
    return True
