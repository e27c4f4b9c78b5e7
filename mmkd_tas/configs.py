"""Reading configs and merging options into them, with mistakes told at once."""

import inspect
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner, ValLoop
from torch.utils.data import DataLoader

from .errors import SetupError, suggest


def _arguments(*callables: Any) -> set[str]:
    names = {name for c in callables for name in inspect.signature(c).parameters}
    return names - {'self', 'args', 'kwargs', 'runner'}


_LOADER = _arguments(DataLoader) | {'num_batch_per_epoch'}
# What mmengine accepts in the sections that need no `type`.
_SECTIONS = {
    '': _arguments(Runner)
    | {'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'}
    | {'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'sync_bn'},
    'auto_scale_lr': {'base_batch_size', 'enable'},
    'env_cfg': {'cudnn_benchmark', 'dist_cfg', 'mp_cfg', 'resource_limit'},
    'log_processor': _arguments(LogProcessor) | {'type'},
    'optim_wrapper': _arguments(OptimWrapper)
    | {'constructor', 'dtype', 'loss_scale', 'paramwise_cfg', 'type'},
    'randomness': _arguments(Runner.set_randomness),
    'train_cfg': _arguments(EpochBasedTrainLoop, IterBasedTrainLoop) | {'by_epoch', 'type'},
    'val_cfg': _arguments(ValLoop) | {'type'},
    'test_cfg': _arguments(ValLoop) | {'type'},
    'train_dataloader': _LOADER,
    'val_dataloader': _LOADER,
    'test_dataloader': _LOADER,
}
# Parts that a config joins into `model`: a change there comes too late.
BASES = Path(__file__).parents[1] / 'configs/_base_'
ALONE = ('teacher', 'student')
_JOINED = {'student': 'architecture', 'teacher': 'teacher', 'distiller': 'distiller'}


def load_config(path: str | Path) -> Config:
    """Read a ``.py``, ``.json`` or ``.yml`` config of mmengine.

    Raises:
        SetupError: If the file is missing or faulty.
    """
    if not Path(path).is_file():
        raise SetupError(f"there is no config file at '{path}'")
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is a program, and can fail in any way
        message = ' '.join(str(error).split())
        raise SetupError(f"the config '{path}' fails: {type(error).__name__}: {message}") from error


def merge_options(config: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options``, ``{'dotted.key': value}``, into a config.

    Raises:
        SetupError: If an option names a key that nothing would read.
    """
    for key in options:
        _check_option(config, key)
    config.merge_from_dict(options)


def compose(dataset: str, pair: str, method: str) -> Config:
    """Return the sum of the base configs of a dataset, a pair and a method.

    Args:
        dataset: A file of ``configs/_base_/datasets``; its schedules are
            ``configs/_base_/schedules/DATASET_FAMILY.py``.
        pair: A file of ``configs/_base_/pairs``, ``TEACHER_STUDENT``.
        method: A file of ``configs/_base_/methods``; ``'teacher'`` or ``'student'`` for
            the training of one of the two alone.

    Raises:
        SetupError: If one of them does not exist.
    """
    choices = {
        'dataset': (dataset, _bases('datasets')),
        'pair': (pair, _bases('pairs')),
        'method': (method, [*_bases('methods'), *ALONE]),
    }
    for kind, (name, known) in choices.items():
        if name not in known:
            raise SetupError(f"--{kind}: there is no '{name}'; choose from {', '.join(known)}")
    part = method if method in ALONE else 'student'
    family = Config.fromfile(BASES / f'pairs/{pair}.py').families[part]
    names = [f'datasets/{dataset}', f'schedules/{dataset}_{family}', f'pairs/{pair}']
    bases = [BASES / f'{name}.py' for name in ['default_runtime', *names]]
    if method in ALONE:
        joined = f'model = _base_.{method}'
    else:
        bases.append(BASES / f'methods/{method}.py')
        joined = (
            "model = dict(type='mmkd_tas.CrossArchDistill', architecture=_base_.student, "
            'teacher=_base_.teacher, distiller=_base_.distiller, input_size=_base_.input_size)'
        )
    text = f'_base_ = {list(map(str, bases))}\n{joined}'
    config = Config.fromstring(text, '.py')
    teacher, student = pair.split('_')
    name = {'teacher': teacher, 'student': student}.get(method, f'{method}_{pair}')
    return Config(config.to_dict(), cfg_text=text, filename=f'{name}_{dataset}.py')


def _bases(kind: str) -> list[str]:
    return sorted(file.stem for file in (BASES / kind).glob('*.py'))


def _check_option(config: Config, option: str) -> None:
    node, path = config, ''
    for key in option.split('.'):
        if node is None:
            return
        if isinstance(node, list | tuple):
            if not key.isdigit() or int(key) >= len(node):
                raise SetupError(
                    f"--cfg-options {option}: '{path}' is a list of {len(node)}; write its index, "
                    f'0 to {len(node) - 1}, in place of {key!r}'
                )
            node = node[int(key)]
        elif not hasattr(node, 'keys'):
            raise SetupError(f"--cfg-options {option}: '{path}' is the value {node!r}, not a dict")
        elif key in node:
            if not path and key in _JOINED and 'model' in node and key not in _SECTIONS['']:
                rest = option[len(key) :]
                raise SetupError(
                    f"--cfg-options {option}: the config has already joined '{key}' into the "
                    f'model; write model.{_JOINED[key]}{rest}'
                )
            node = node[key]
        elif 'type' in node or 'cfg_path' in node or key in _SECTIONS.get(path, ()):
            return  # the class that is built from the dict checks its own arguments
        else:
            known = {*node.keys(), *_SECTIONS.get(path, ())}
            where = f"'{path}'" if path else 'the config'
            raise SetupError(f'--cfg-options {option}: {where} has no {key!r}{suggest(key, known)}')
        path = f'{path}.{key}' if path else key
