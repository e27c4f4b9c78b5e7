"""What has to be there before the packages and their configs can be imported."""

import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import Runner
from mmengine.utils import package_utils
from torch.ao.quantization import fuser_method_mappings

from . import apply, around, patch, replace, source

# mmcv-lite lacks an operator that no classifier uses.
warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention')


def _names_this_package(node: Any) -> bool:
    """Return whether a config, or what is built from one, has something of this package."""
    if isinstance(node, Config):
        node = node.to_dict()
    if isinstance(node, Mapping):
        node = list(node.values())
    if isinstance(node, list | tuple):
        return any(map(_names_this_package, node))
    name = node if isinstance(node, str) else getattr(node, '__module__', None) or ''
    return re.match(r'mmkd_tas(\.|::|$)', name) is not None


@around(Runner, '__init__')
def _patched_where_it_runs_this_package(init: Callable, *args: Any, **kwargs: Any) -> None:
    if _names_this_package([args, kwargs]):
        apply()
    init(*args, **kwargs)


@patch(lambda: 'pkg_resources' in source(package_utils.get_installed_path))
def package_lookup() -> None:
    """mmengine 0.10.7, utils/package_utils.py:36: `mmpretrain::...` needs no pkg_resources."""
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
        replace(getattr(package_utils, new.__name__), new)


@patch(lambda: 'mmkd_tas' not in MODULE2PACKAGE)
def configs_of_this_package() -> None:
    """mmengine 0.10.7, config/config.py:1247: `mmkd_tas::...` and read_base() find our configs."""
    MODULE2PACKAGE['mmkd_tas'] = 'mmkd_tas'

    def written_for(scope: str | None) -> str | None:
        # that of what they inherit and of their default_scope
        return 'mmpretrain' if scope == 'mmkd_tas' else scope

    @around(Config, '_get_cfg_path')
    def get_cfg_path(get_path: Callable, *args: str) -> tuple[str, str | None]:
        path, scope = get_path(*args)
        return path, written_for(scope)

    @around(Config, '_parse_lazy_import')
    def parse_base(parse: Callable, filename: str) -> tuple[dict, set]:
        if Config._is_lazy_import(filename):
            return parse(filename)
        # mmengine refuses one that inherits by _base_, which is a matter of how it is read
        return Config._dict_to_config_dict_lazy(Config._file2dict(filename)[0]), set()

    around(DefaultScope, 'overwrite_default_scope')(
        lambda overwrite, scope: overwrite(written_for(scope))
    )


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


@patch(lambda: importlib.util.find_spec('mmcls') is None)
def mmcls_is_mmpretrain() -> None:
    """mmrazor 1.0.0, models/losses/kd_soft_ce_loss.py:9: mmcls, its old name, means mmpretrain."""
    sys.meta_path.insert(0, _Renamed())
    MODULE2PACKAGE['mmcls'] = 'mmpretrain'  # _base_ = ['mmcls::...']

    def renamed(scope: str | None) -> str | None:
        return 'mmpretrain' if scope == 'mmcls' else scope

    @around(Registry, 'split_scope_key')
    def split_scope_key(split: Callable, key: str) -> tuple[str | None, str]:  # type='mmcls.X'
        scope, name = split(key)
        return renamed(scope), name

    # _scope_='mmcls'
    around(DefaultScope, 'overwrite_default_scope')(
        lambda overwrite, scope: overwrite(renamed(scope))
    )


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


class _StandIn(ModuleType):
    __path__: Iterable[str] = ()
    __all__: Iterable[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith('__'):
            raise AttributeError(name)
        return _Unavailable(name, (), {})


@patch(lambda: not hasattr(fuser_method_mappings, 'reverse2'))
def quantization() -> None:
    """mmrazor 1.0.0, structures/__init__.py:2: imports without its quantization."""
    name = 'mmrazor.structures.quantization'
    sys.modules[name] = _StandIn(name)
