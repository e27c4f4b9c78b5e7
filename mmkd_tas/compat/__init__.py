"""Patches for the released OpenMMLab packages on a current PyTorch.

mmengine 0.10.7, mmcv 2.1.0, mmpretrain 1.2.0 and mmrazor 1.0.0 are the last releases, and each
breaks somewhere on PyTorch 2. Every function marked with :func:`patch` fixes one thing, where a
probe finds it broken. Its docstring says what works from then on, and which file and line it
patches.

``import mmkd_tas`` applies those of :mod:`.imports`, without which the packages and their configs
cannot be imported. The others change how something works, and wait until it is part of a run:
our commands call :func:`apply`, and so does whatever builds a :class:`CrossArchDistill`, reads a
checkpoint, or gives mmengine's Runner a config that names this package.
"""

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

TOPICS = ('imports', 'checkpoints', 'training', 'processes', 'models', 'images')

patches: dict[str, tuple[Callable[[], None], Callable[[], bool]]] = {}
_probed: set[str] = set()
_applied: dict[str, str] = {}


def patch(broken: Callable[[], bool]) -> Callable:
    """Register a patch, and the probe that tells whether it is needed."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        patches[function.__name__] = function, broken
        return function

    return register


def apply(topics: Sequence[str] = TOPICS) -> None:
    """Apply every patch that this environment needs; a second call does nothing."""
    for topic in topics:
        module = importlib.import_module(f'.{topic}', __name__).__name__
        for name, (function, broken) in patches.items():
            if function.__module__ == module and name not in _probed:
                _probed.add(name)
                # a release that lacks what is patched needs no patch
                with contextlib.suppress(AttributeError, ImportError, KeyError):
                    if broken():
                        function()
                        _applied[name] = str(function.__doc__)


def applied() -> dict[str, str]:
    """Return ``{name: what it patches}`` of the patches in force."""
    return dict(_applied)


def source(function: Callable) -> str:
    """Return the text of a function itself, and not of one that it wraps."""
    return inspect.getsource(function.__code__)


def replace(old: Any, new: Any) -> None:
    """Rebind ``old`` to ``new`` in every module of OpenMMLab that imported it by name."""
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] in ('mmengine', 'mmpretrain') and module is not None:
            for key, value in list(vars(module).items()):
                if value is old:
                    setattr(module, key, new)


def around(owner: Any, name: str) -> Callable[[Callable], None]:
    """Replace a function of a class or module by one that is given the original first."""

    def decorate(function: Callable) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        method = inspect.isfunction(inspect.getattr_static(owner, name))
        setattr(owner, name, wrapped if method else staticmethod(wrapped))

    return decorate


from .checkpoints import write_whole  # noqa: E402
from .training import SAFETY_HOOKS, add_hooks, sent  # noqa: E402

__all__ = ['SAFETY_HOOKS', 'add_hooks', 'applied', 'apply', 'patch', 'sent', 'write_whole']
