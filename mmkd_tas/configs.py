"""Reading configs and merging options into them, with mistakes told at once."""

import contextlib
import inspect
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner, ValLoop
from mmpretrain.models import HuggingFaceClassifier, TimmClassifier
from mmpretrain.registry import MODELS
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
    """Return the sum of the base configs of a dataset, two models and a method.

    Args:
        dataset: A file of ``configs/_base_/datasets``; how a model is trained on it is said
            by ``configs/_base_/recipes/DATASET_FAMILY.py`` (of a teacher, where there is
            one, by ``DATASET_teacher.py``).
        pair: ``TEACHER_STUDENT``, two files of ``configs/_base_/models/FAMILY``.
        method: A file of ``configs/_base_/methods``; ``'teacher'`` or ``'student'`` for
            the training of one of the two alone.

    Where a model's config states ``img_size``, it becomes that of the dataset's images.

    Raises:
        SetupError: If one of them does not exist, or the dataset has no recipe for the
            family of the model that is trained.
    """
    models = {file.stem: file for file in sorted((BASES / 'models').glob('*/*.py'))}
    teacher, _, student = pair.partition('_')
    for option, name, known in (
        ('--dataset', dataset, _bases('datasets')),
        ('--pair', teacher, models),
        ('--pair', student, models),
        ('--method', method, [*_bases('methods'), *ALONE]),
    ):
        if name not in known:
            form = 'TEACHER_STUDENT, each ' if option == '--pair' else ''
            raise SetupError(
                f"{option}: there is no '{name}'; give {form}one of {', '.join(known)}"
            )
    trained = models[teacher if method == 'teacher' else student]
    recipe = BASES / f'recipes/{dataset}_{trained.parent.name}.py'
    of_teachers = BASES / f'recipes/{dataset}_teacher.py'
    if method == 'teacher' and of_teachers.is_file():
        recipe = of_teachers
    if not recipe.is_file():
        raise SetupError(f"--dataset: there is no recipe '{recipe}' to train {trained.stem} with")
    bases = [recipe]
    if method in ALONE:
        bases.append(trained)
        name, joined = trained.stem, f'model = _base_.{_variable(trained.stem)}'
    else:
        bases += dict.fromkeys([models[teacher], models[student]])
        bases.append(BASES / f'methods/{method}.py')
        name = f'{method}_{pair}'
        joined = (
            "model = dict(type='mmkd_tas.CrossArchDistill', "
            f'architecture=_base_.{_variable(student)}, teacher=_base_.{_variable(teacher)}, '
            'distiller=_base_.distiller, input_size=_base_.input_size)'
        )
    text = f'_base_ = {list(map(str, bases))}\n{joined}'
    config = Config.fromstring(text, '.py').to_dict()
    model = config['model']
    if method in ALONE:
        set_num_classes(model, config['data_preprocessor']['num_classes'])
    for part in (model, model.get('architecture', {}), model.get('teacher', {})):
        for module in (part, part.get('backbone', {})):
            if 'img_size' in module:
                module['img_size'] = config['input_size']
    return Config(config, cfg_text=text, filename=f'{name}_{dataset}.py')


def set_num_classes(model: dict, count: int | None) -> None:
    """Tell a classifier's config its number of classes, where it does not say it itself.

    The first of the model, its head and its backbone whose class takes the argument
    gets it.
    """
    if count is None or 'cfg_path' in model:
        return
    for part in (model, model.get('head'), model.get('backbone')):
        argument = _argument_for_classes(part) if isinstance(part, dict) else None
        if argument is not None:
            part.setdefault(argument, count)
            return


def _argument_for_classes(cfg: dict) -> str | None:
    """Return what a class calls its number of classes, None if it takes none or is not known."""
    kind = cfg.get('type')
    if isinstance(kind, str):
        with contextlib.suppress(ImportError, KeyError, RuntimeError):
            kind = MODELS.get(kind)
    if kind in (TimmClassifier, HuggingFaceClassifier):  # which hand on what they are given
        return 'num_classes' if kind is TimmClassifier else 'num_labels'
    for owner in kind.__mro__ if inspect.isclass(kind) else [kind]:
        if not callable(owner):
            return None
        parameters = inspect.signature(owner).parameters.values()
        if any(p.name == 'num_classes' for p in parameters):
            return 'num_classes'
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return None
    return None


def _bases(kind: str) -> list[str]:
    return sorted(file.stem for file in (BASES / kind).glob('*.py'))


def _variable(name: str) -> str:
    """Return what the file of a model calls it."""
    return name.replace('-', '_')


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
