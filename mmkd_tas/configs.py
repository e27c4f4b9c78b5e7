"""Reading configs and merging options into them, with mistakes told at once."""

import contextlib
import inspect
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner, ValLoop
from mmpretrain.models import HuggingFaceClassifier, TimmClassifier
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from .errors import SetupError, suggest
from .explain import told
from .origins import close_models, is_named


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
    'env_cfg': {
        'cudnn_benchmark',
        'dist_cfg',
        'float32_matmul_precision',
        'mp_cfg',
        'resource_limit',
    },
    'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'log_processor': _arguments(LogProcessor) | {'type'},
    'optim_wrapper': _arguments(OptimWrapper)
    | {'constructor', 'dtype', 'loss_scale', 'paramwise_cfg', 'type'},
    'optim_wrapper.clip_grad': _arguments(clip_grad_norm_, clip_grad_value_) | {'type'},
    'optim_wrapper.paramwise_cfg': {'custom_keys', 'bypass_duplicate', 'dcn_offset_lr_mult'}
    | {'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'}
    | {'dwconv_decay_mult'},
    'randomness': _arguments(Runner.set_randomness),
    'train_cfg': _arguments(EpochBasedTrainLoop, IterBasedTrainLoop) | {'by_epoch', 'type'},
    'val_cfg': _arguments(ValLoop) | {'type'},
    'test_cfg': _arguments(ValLoop) | {'type'},
    'train_dataloader': _LOADER,
    'val_dataloader': _LOADER,
    'test_dataloader': _LOADER,
}
CONFIGS = Path(__file__).parent / '.mim/configs'
BASES = CONFIGS / '_base_'
ALONE = ('teacher', 'student')
CLASSIFIER = 'mmkd_tas.Classifier'
# Parts that a config joins into `model`: a change there comes too late.
_JOINED = {'student': 'architecture', 'teacher': 'teacher', 'distiller': 'distiller'}


def load_config(path: str | Path) -> Config:
    """Read a ``.py``, ``.json`` or ``.yml`` config of mmengine, or one of a package by its name.

    Raises:
        SetupError: If the file is missing or faulty.
    """
    if '::' in str(path):  # mmpretrain::resnet/resnet18_8xb32_in1k.py
        with told('config of a package', name=str(path)):
            path = Config._get_cfg_path(str(path), '')[0]
    if not Path(path).is_file():
        raise SetupError(f"there is no config file at '{path}'")
    with told('config', path=path):
        return Config.fromfile(path)


def merge_options(config: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options``, ``{'dotted.key': value}``, into a config.

    Raises:
        SetupError: If an option names a key that nothing would read.
    """
    for key in options:
        _check_option(config, key)
    config.merge_from_dict(options)


def check_sections(config: Config) -> None:
    """Check the dicts that mmengine reads itself, and of which no class checks the keys.

    Raises:
        SetupError: If one of them has a key that nothing would read.
    """
    for path, known in _SECTIONS.items():
        node: Any = config if path else {}  # any variable of a config is a key of it
        for key in path.split('.'):
            node = node.get(key) if hasattr(node, 'keys') else None
            if path != 'optim_wrapper.clip_grad' and hasattr(node, 'keys'):
                # of another class, that has arguments of its own
                node = None if {'type', 'constructor'} & node.keys() else node
        for key in node if hasattr(node, 'keys') else ():
            if key not in known and not key.startswith('_'):
                raise SetupError(f'{path}: there is no {key!r}{suggest(key, known)}')


def compose(
    dataset: str,
    pair: str,
    method: str,
    options: dict[str, Any] | None = None,
    input_size: int | None = None,
) -> Config:
    """Return the sum of the base configs of a dataset, two models and a method.

    Args:
        dataset: A file of ``configs/_base_/datasets``; how a model is trained on it is said
            by ``configs/_base_/recipes/DATASET_FAMILY.py``, or, where there is one, by
            ``DATASET_MODEL.py`` (before both, of a teacher by ``DATASET_teacher.py``).
        pair: ``TEACHER,STUDENT``: files of ``configs/_base_/models/FAMILY``, or models of
            other libraries as :class:`mmkd_tas.models.Classifier` has them
            (``timm:NAME``); of two files also ``TEACHER_STUDENT``. Models of other
            libraries are of the family ``token`` if they have layer norms or hardly any
            convolutions, else ``cnn``.
        method: A file of ``configs/_base_/methods`` (where there is one, in its form for
            the data set: ``METHOD_DATASET_FAMILY.py`` or ``METHOD_DATASET.py``);
            ``'teacher'`` or ``'student'`` for the training of one of the two alone, which
            is then the only one needed.
        options: Changes, ``{'dotted.key': value}``, which the models follow: the number of
            classes.
        input_size: Of the images, in pixels; by default the dataset's. Crops and resizes of
            its pipelines keep their proportions.

    A model that is built for images of one size is built for that of the dataset's.

    Raises:
        SetupError: If one of them does not exist, or the dataset has no recipe for the
            family of the model that is trained.
    """
    for option, name, known in (
        ('--dataset', dataset, names_of('datasets')),
        ('--method', method, [*names_of('methods'), *ALONE]),
    ):
        if name not in known:
            raise SetupError(f"{option}: there is no '{name}'; give one of {', '.join(known)}")
    if ':' in pair and ',' not in pair:
        raise SetupError(f"--pair: write a comma between teacher and student of '{pair}'")
    teacher, _, student = pair.partition(',' if ',' in pair else '_')
    names = {'teacher': teacher, 'student': student}
    if method in ALONE:
        names = {method: names[method]}
    files = {role: _file_of(name, role) for role, name in names.items()}
    models = {
        role: f'_base_.{_variable(names[role])}' if file else _named(names[role])
        for role, file in files.items()
    }
    trained = method if method in ALONE else 'student'
    if file := files[trained]:
        family = file.parent.name
    else:
        family = _family_of(ROOT_MODELS.build(dict(type=CLASSIFIER, model=names[trained])))
    kinds = (*(['teacher'] if method == 'teacher' else []), names[trained], family)
    recipe = _first('recipes', *(f'{dataset}_{kind}' for kind in kinds))
    if recipe is None:
        missing = BASES / f'recipes/{dataset}_{family}.py'
        raise SetupError(
            f"--dataset: there is no recipe '{missing}' to train {names[trained]} with"
        )
    bases: list[Path | None] = [recipe, *dict.fromkeys(file for file in files.values() if file)]
    if method in ALONE:
        name, joined = names[method], f'model = {models[method]}'
    else:
        forms = f'{method}_{dataset}_{family}', f'{method}_{dataset}', method
        bases.append(_first('methods', *forms))
        name = f'{method}_{teacher}_{student}'
        joined = (
            "model = dict(type='mmkd_tas.CrossArchDistill', "
            f'architecture={models["student"]}, teacher={models["teacher"]}, '
            'distiller=_base_.distiller, input_size=_base_.input_size)'
        )
    text = f'_base_ = {list(map(str, bases))}\n{joined}'
    read = Config.fromstring(text, '.py')
    read.merge_from_dict(options or {})
    config = read.to_dict()
    if input_size is not None:
        _resize(config, input_size)
    model = config['model']
    if config['data_preprocessor']['num_classes'] is None:
        raise SetupError(f'--dataset {dataset}: which images and classes? write --data FOLDER')
    if method in ALONE:
        set_num_classes(model, config['data_preprocessor']['num_classes'])
        config['data_preprocessor'].update(model.pop('data_preprocessor', {}))
    for part in (model, model.get('architecture', {}), model.get('teacher', {})):
        for module in (part, part.get('backbone', {})):
            if 'img_size' in module:
                module['img_size'] = config['input_size']
    return Config(config, cfg_text=text, filename=f'{file_name(name)}_{dataset}.py')


def file_name(name: str) -> str:
    """Return a name with nothing in it that files cannot have."""
    return re.sub(r'[^\w.-]+', '-', name)


def _resize(config: dict, size: int) -> None:
    """Make all that a config says about pixels fit images of another size."""
    ratio = size / config['input_size']

    def scale(part: Any) -> None:
        if isinstance(part, list | tuple):
            for item in part:
                scale(item)
        elif isinstance(part, dict):
            for key, value in part.items():
                if key in ('scale', 'crop_size') and isinstance(value, int):
                    part[key] = round(ratio * value)
                else:
                    scale(value)

    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        scale(config[loader]['dataset']['pipeline'])
    for part in (config, config['model']):
        if 'input_size' in part:
            part['input_size'] = size


def set_epochs(config: Config, epochs: int) -> None:
    """Change the length of a training, and its schedule in proportion.

    What is then shorter than half an epoch, as a warm-up, is left out.
    """
    ratio = epochs / config.train_cfg.max_epochs
    config.train_cfg.max_epochs = epochs
    schedulers = []
    for scheduler in config.param_scheduler:
        for key in scheduler.keys() & {'begin', 'end', 'T_max'}:
            scheduler[key] = round(ratio * scheduler[key])
        if 'milestones' in scheduler:
            scheduler.milestones = [round(ratio * epoch) for epoch in scheduler.milestones]
        if scheduler.get('end') != scheduler.get('begin', 0):
            schedulers.append(scheduler)
    config.param_scheduler = schedulers


def method_config(name: str) -> dict:
    """Return the config of the distiller of a method, a file of ``configs/_base_/methods``.

    Raises:
        SetupError: If there is no such file.
    """
    known = sorted(file.stem for file in (BASES / 'methods').glob('*.py'))
    if name not in known:
        close = suggest(name, known) or f'; there are {", ".join(known)}'
        raise SetupError(f"method: there is no '{name}'{close}")
    return load_config(BASES / f'methods/{name}.py').distiller.to_dict()


def _file_of(name: str, role: str) -> Path | None:
    """Return the base config of a model, None for one of another library."""
    files = {file.stem: file for file in sorted((BASES / 'models').glob('*/*.py'))}
    if name in files or is_named(name):
        return files.get(name)
    close = close_models(name, files) or f'; there are {", ".join(files)}'
    raise SetupError(
        f"--{role}: there is no model '{name}'{close} (give --teacher and --student, or --pair "
        'TEACHER,STUDENT: files of configs/_base_/models, timm:NAME, torchvision:NAME or hf:NAME)'
    )


def _variable(name: str) -> str:
    """Return what the file of a model calls it."""
    return name.replace('-', '_')


def _named(name: str) -> str:
    return f"dict(type='{CLASSIFIER}', model={name!r}, img_size=None)"


def _family_of(model: nn.Module) -> str:
    """Return whose recipe a model is trained with."""
    modules = [*model.modules()]
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    normed = any(isinstance(m, nn.LayerNorm) for m in modules)
    return 'token' if normed or len(convolutions) < 3 else 'cnn'


def set_num_classes(model: dict, count: int | None) -> None:
    """Tell a classifier's config its number of classes, where it does not say it itself.

    The first of the model, its head and its backbone whose class takes the argument
    gets it.
    """
    if count is None or 'cfg_path' in model:
        return
    for part in (model, model.get('head'), model.get('backbone')):
        if isinstance(part, dict) and (argument := _argument_for_classes(part)) is not None:
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


def names_of(kind: str) -> list[str]:
    """Return the names in a folder of ``configs/_base_``, without the forms for some data."""
    names = sorted(file.stem for file in (BASES / kind).glob('*.py'))
    return [name for name in names if '_' not in name]  # the others are forms of these


def _first(kind: str, *names: str) -> Path | None:
    files = (BASES / kind / f'{name}.py' for name in names)
    return next((file for file in files if file.is_file()), None)


def _check_option(config: Config, option: str) -> None:
    node, path = config, ''
    for key in option.split('.'):
        if node is None:
            return
        if isinstance(node, list | tuple):
            if not key.isdigit() or int(key) >= len(node):
                raise SetupError(
                    f"--cfg-options {option}: '{path}' is a list of {len(node)}; write its index, "
                    f'0 to {len(node) - 1}, instead of {key!r}'
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
