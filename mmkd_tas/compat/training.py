"""What mmengine does in every training: hooks, logs, optimizers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.device import get_device
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, DefaultOptimWrapperConstructor
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import LogProcessor, Runner, runner

from . import apply, around, patch, source


@patch(lambda: 'from None' in source(Runner.call_hook))
def tracebacks_of_hooks() -> None:
    """mmengine 0.10.7, runner/runner.py:1827: a TypeError in a hook keeps its traceback."""

    def call_hook(self, fn_name: str, **kwargs) -> None:
        # mmengine's raises another one in its place, "from None"
        for hook in self._hooks:
            if hasattr(hook, fn_name):
                getattr(hook, fn_name)(self, **kwargs)

    Runner.call_hook = call_hook


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


@patch(lambda: 'self.model' not in source(Runner.register_hooks))
def hooks_of_models() -> None:
    """mmengine 0.10.7, runner/runner.py:1978: a model brings the hooks that it needs."""

    @around(Runner, 'register_hooks')
    def register_hooks(register, self, default_hooks=None, custom_hooks=None) -> None:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        brought = getattr(model, 'default_hooks', {})
        hooks = add_hooks(default_hooks, brought)
        for name in {*SAFETY_HOOKS, *brought}:
            if name in hooks and hooks[name] is None:  # mmengine knows this of its own alone
                del hooks[name]
        register(self, hooks, custom_hooks)

    @around(Runner, 'register_hook')
    def in_place_of_its_kind(register, self, hook, priority=None) -> None:
        if isinstance(hook, dict):
            hook = dict(hook)
            given = hook.pop('priority', None)
            priority = given if priority is None else priority
            hook = HOOKS.build(hook)
        for cfg in SAFETY_HOOKS.values():
            kind = HOOKS.get(cfg['type'])
            if isinstance(hook, kind):  # the config's own, or a script's
                self._hooks = [other for other in self._hooks if not isinstance(other, kind)]
        register(self, hook, priority)


def patched_worker(*args: Any, **kwargs: Any) -> None:
    """Start a worker, which has no patches yet if it is not forked."""
    apply()
    worker_init_fn(*args, **kwargs)


@patch(lambda: runner.default_worker_init_fn is worker_init_fn)
def patches_in_workers() -> None:
    """mmengine 0.10.7, runner/runner.py:1438: workers have the patches, also when spawned."""
    runner.default_worker_init_fn = patched_worker


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


@patch(lambda: 'np.append' in source(HistoryBuffer.update))
def histories_of_scalars() -> None:
    """mmengine 0.10.7, logging/history_buffer.py:60: histories take no more time as they grow."""

    def update(self, log_val: float, count: int = 1) -> None:
        if not isinstance(log_val, int | float) or not isinstance(count, int | float):
            raise TypeError(
                f'log_val and count must be numbers, got {type(log_val)} and {type(count)}'
            )
        for name, value in (('_log_history', log_val), ('_count_history', count)):
            setattr(self, name, _appended(self, name, value))

    HistoryBuffer.update = update

    @around(HistoryBuffer, '__getstate__')
    def without_rooms(state: Callable, self: HistoryBuffer) -> dict:
        return {key: value for key, value in state(self).items() if key != '_rooms'}

    @around(LogProcessor, 'get_log_after_iter')
    def get_log_after_iter(log: Callable, self: LogProcessor, runner: Runner, *args: Any) -> Any:
        logged = log(self, runner, *args)
        window = _windows(self, runner)
        for key, buffer in runner.message_hub.log_scalars.items():
            # Not what the checkpoint says: the run may be resumed with other windows.
            buffer.max_length = window(key) or HistoryBuffer().max_length
            if len(buffer.data[0]) > buffer.max_length:
                for name in ('_log_history', '_count_history'):
                    setattr(buffer, name, getattr(buffer, name)[-buffer.max_length :].copy())
        return logged


_MOST_UNREAD = 10_000


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device, without waiting for what a GPU still has to do."""
    if device.type == 'cuda' and tensor.device.type == 'cpu':
        tensor = tensor.pin_memory()  # else the copy waits, whatever non_blocking says
    return tensor.to(device, non_blocking=True)


@patch(lambda: '_log_scalars' not in vars(MessageHub))
def losses_read_when_logged() -> None:
    """mmengine 0.10.7, logging/message_hub.py:95: losses are read when logged, not at each step."""
    # Each value that is read makes a GPU and its program wait for each other.
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


@patch(lambda: 'param.ndim == 1' in source(DefaultOptimWrapperConstructor.add_params))
def flat_scalars() -> None:
    """mmengine 0.10.7, optim/optimizer/default_constructor.py:167: scalars are flat parameters."""

    @around(DefaultOptimWrapperConstructor, 'add_params')
    def add_params(add: Callable, self, params: list[dict], *args: Any, **kwargs: Any) -> None:
        add(self, params, *args, **kwargs)
        factor = self.paramwise_cfg.get('flat_decay_mult')
        if self.base_wd is None or factor is None:
            return
        for group in params:  # a custom key that matched has set its own
            if group['params'][0].ndim == 0:
                group.setdefault('weight_decay', self.base_wd * factor)


@patch(lambda: get_device() == 'cpu' and 'only available tr' in source(AmpOptimWrapper.__init__))
def cpu_amp() -> None:
    """mmengine 0.10.7, optim/optimizer/amp_optimizer_wrapper.py:69: bfloat16 trains on CPUs."""
    # The constructor refuses CPUs, though its autocast supports them. bfloat16
    # has the range of float32 and needs no loss scaling.
    amp_optimizer_wrapper.is_cuda_available = lambda: True
    scaler = amp_optimizer_wrapper.GradScaler
    amp_optimizer_wrapper.GradScaler = lambda *args, **kwargs: scaler(*args, enabled=False)
