"""What the command line tools share: arguments, and errors told in one sentence."""

import argparse
import contextlib
import copy
import difflib
import errno
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError

import mmengine.runner
import timm
import torch
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import Registry, build_from_cfg
from mmengine.runner import BaseLoop
from mmengine.visualization import BaseVisBackend, Visualizer

from . import compat, configs
from .compat import SAFETY_HOOKS, add_hooks
from .errors import SetupError, suggest

# Where a mistake in the config may show; what passes through other code is the user's own.
_PACKAGES = ('mmengine', 'mmcv', 'mmpretrain', 'mmrazor', 'mmkd_tas', 'timm', 'torch')
_PACKAGES += ('torchvision', 'huggingface_hub', 'numpy', 'PIL', 'cv2')
# What a launcher sets for each process, and how it is called.
_LAUNCHED = {
    'none': (),
    'pytorch': ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'MASTER_ADDR',
    ),
}
_START = {
    'pytorch': 'start with `bash tools/dist_train.sh CONFIG GPUS`, or with torchrun',
    'slurm': 'start with `bash tools/slurm_train.sh PARTITION JOB CONFIG`, or with srun',
    'mpi': 'start with mpirun',
}
_BUILD = build_from_cfg.__code__
HELP = {
    'dataset': 'a file of configs/_base_/datasets',
    'pair': 'TEACHER,STUDENT: files of configs/_base_/models (of two files also TEACHER_STUDENT), '
    'or timm:NAME, torchvision:NAME, hf:NAME or hf:FOLDER',
    'teacher': 'the one of the pair, instead of --pair',
    'student': 'the other',
    'method': 'a file of configs/_base_/methods; `teacher` or `student`: one of the two alone',
}


def add_run_arguments(
    parser: argparse.ArgumentParser, work_dir: str = 'where logs and checkpoints go'
) -> None:
    """Add what tells the config, and the options that training and testing share."""
    parser.add_argument('config', nargs='?', help='config file')
    composed = parser.add_argument_group('instead of a config file')
    for kind in HELP:
        composed.add_argument(f'--{kind}', help=HELP[kind])
    parser.add_argument('--work-dir', help=work_dir)
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='change settings of the config, e.g. train_cfg.max_epochs=10 '
        'model.teacher_ckpt=t.pth; a list is written key="[a,b]"',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes this one
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(
    args: argparse.Namespace,
    base_options: dict[str, Any] | None = None,
    input_size: int | None = None,
) -> Config:
    """Return the config that the arguments describe.

    Args:
        args: Of :func:`add_run_arguments`.
        base_options, input_size: For :func:`mmkd_tas.configs.compose`.
    """
    _check_launcher(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    pair = args.pair
    if args.teacher or args.student:
        if pair:
            raise SetupError('give either --pair, or --teacher and --student')
        pair = f'{args.teacher or ""},{args.student or ""}'
    parts = (args.dataset, pair, args.method)
    if (args.config is None) == (None in parts) or (args.config and any(parts)):
        raise SetupError(
            'give either a config file, or all of --dataset, --pair (or --teacher and --student) '
            'and --method'
        )
    if args.config:
        config = configs.load_config(args.config)
    else:
        config = configs.compose(*parts, base_options, input_size)
    config.default_hooks = add_hooks(config.get('default_hooks'), SAFETY_HOOKS)
    configs.merge_options(config, args.cfg_options)
    configs.check_sections(config)
    config.launcher = args.launcher
    _check_wrapper(config)
    _check_lists(config)
    name = os.path.splitext(os.path.basename(config.filename))[0]
    config.work_dir = args.work_dir or config.get('work_dir') or os.path.join('work_dirs', name)
    # The defaults of mmpretrain's own tools.
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if config.get(loader):
            config[loader].setdefault('pin_memory', torch.cuda.is_available())
            config[loader].setdefault(
                'persistent_workers', config[loader].get('num_workers', 0) > 0
            )
            config[loader].setdefault('collate_fn', dict(type='default_collate'))
    _set_matmul_precision(config)
    if torch.cuda.is_available():
        prefer_fused(config)
    return config


def _set_matmul_precision(config: Config) -> None:
    """Choose how float32 numbers are multiplied: on GPUs, ``'high'`` is TF32."""
    precision = (config.get('env_cfg') or {}).get('float32_matmul_precision')
    known = ('highest', 'high', 'medium')
    if precision not in (None, *known):
        raise SetupError(
            f'env_cfg.float32_matmul_precision: {precision!r} is none of '
            f'{", ".join(map(repr, known))}'
        )
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


def prefer_fused(config: Config) -> None:
    """Let an optimizer that torch has fused update all weights at once, unless the config says."""
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    kind = optimizer.get('type')
    kind = getattr(torch.optim, kind, None) if isinstance(kind, str) else kind
    known = inspect.isclass(kind) and 'fused' in inspect.signature(kind).parameters
    if known and not optimizer.keys() & {'foreach', 'capturable', 'differentiable'}:
        optimizer.setdefault('fused', True)


def _check_launcher(launcher: str) -> None:
    """Refuse a launcher that has not started this process, and none where one has."""
    missing = [name for name in _LAUNCHED[launcher] if name not in os.environ]
    if missing:
        raise SetupError(
            f'--launcher {launcher}: it has not started this process, {", ".join(missing)} '
            f'{"is" if len(missing) == 1 else "are"} not set: {_START[launcher]}, or leave '
            '--launcher out for one process'
        )
    if launcher == 'none' and 'TORCHELASTIC_RUN_ID' in os.environ:
        count = int(os.environ.get('WORLD_SIZE', 1))
        if count > 1:
            raise SetupError(
                f'--launcher: torchrun has started {count} processes, and without --launcher '
                'pytorch each would train alone, in the same folder; add it'
            )


def _check_lists(config: Config) -> None:
    """Refuse what is no list of parts, each a dict with a type, where mmengine takes one."""
    visualizer = config.get('visualizer') or {}
    if not hasattr(visualizer, 'get'):
        visualizer = {} if isinstance(visualizer, Visualizer) else dict(vis_backends=visualizer)
    backends = visualizer.get('vis_backends')
    for path, found, kind, example in (
        ('visualizer.vis_backends', backends, BaseVisBackend, 'TensorboardVisBackend'),
        ('custom_hooks', config.get('custom_hooks'), Hook, 'EMAHook'),
    ):
        if isinstance(found, dict) and kind is BaseVisBackend:  # which mmengine takes, too
            found = [found]
        listed = isinstance(found, list | tuple)
        for part in found if listed else () if found is None else [found]:
            typed = isinstance(part, kind) or (isinstance(part, dict) and 'type' in part)
            if not (listed and typed):
                raise SetupError(
                    f'{path}: {part!r} is not understood; write a list of dicts with a type, '
                    f"[dict(type='{example}')]"
                )


def _check_wrapper(config: Config) -> None:
    """Refuse what mmengine's Runner cannot save: it asks one process for all of the state."""
    wrapper = str((config.get('model_wrapper_cfg') or {}).get('type'))
    if config.get('runner_type', 'Runner') != 'Runner' or 'FullySharded' in wrapper:
        raise SetupError(
            "runner_type, model_wrapper_cfg: runs take mmengine's Runner and DDP, and neither "
            'another runner nor FSDP; leave the keys out, and to save memory share the state of '
            "the optimizer: optim_wrapper.optimizer=dict(type='ZeroRedundancyOptimizer', "
            "optimizer_type='AdamW', lr=...)"
        )


def student_config(config: Config) -> Config:
    """Make the student the model of a distillation config; leave other configs alone."""
    if 'architecture' in config.model:
        preprocessor = config.model.get('data_preprocessor') or config.get('data_preprocessor')
        config.model = config.model.architecture
        configs.set_num_classes(config.model, (preprocessor or {}).get('num_classes'))
        if preprocessor and 'cfg_path' not in config.model:
            config.model.setdefault('data_preprocessor', preprocessor)
    return config


class Runner(mmengine.runner.Runner):
    """mmengine's runner, which shows of a long message in its log file only what it is about."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Return mmengine's logger."""
        logger = super().build_logger(*args, **kwargs)
        if any(isinstance(handler, logging.FileHandler) for handler in logger.handlers):
            for handler in logger.handlers:
                if type(handler) is logging.StreamHandler:
                    handler.setFormatter(_Brief(handler.formatter))
                    # one line for every weight
                    handler.addFilter(lambda r: not r.getMessage().startswith('paramwise_options'))
        return logger


class _Brief(logging.Formatter):
    """Cuts short what informs in many lines, as mmengine's of the config and the machine."""

    def __init__(self, whole: logging.Formatter, most: int = 10) -> None:
        super().__init__()
        self.whole, self.most = whole, most

    def format(self, record: logging.LogRecord) -> str:
        lines = record.getMessage().splitlines()
        if record.levelno <= logging.INFO and len(lines) > self.most:
            record = copy.copy(record)
            title = next((line for line in lines if re.search(r'\w', line)), '').strip(' :')
            record.msg, record.args = f'{title}: {len(lines)} lines, in the log file', None
        return self.whole.format(record)


def run(main: Callable[[], None]) -> None:
    """Run a tool; a mistake of the user ends it with one sentence and status 1.

    The traceback of whatever ends a run is in its log file. Of what is no mistake that
    :func:`explain` knows it is shown, too.
    """
    compat.apply()
    try:
        main()
    except Exception as error:
        # PyTorch's handler would interrupt the explanation when one more worker dies
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sentence = explain(error)
        kept = _keep_traceback(error)
        if not sentence:
            raise
        if not kept and _in_loop(error) and not isinstance(error, SetupError):
            traceback.print_exception(error)
        sys.exit(f'error: {sentence}')


def _keep_traceback(error: Exception) -> bool:
    """Write a traceback into the log file of the run; return whether there is one."""
    kept = False
    record = logging.LogRecord(
        'mmengine', logging.ERROR, __file__, 0, 'The run has ended with this error:', None,
        (type(error), error, error.__traceback__),
    )  # fmt: skip
    for handler in MMLogger.get_current_instance().handlers:
        if isinstance(handler, logging.FileHandler):
            with contextlib.suppress(OSError, ValueError):  # of a full disk, or closed
                handler.stream.write(handler.format(record) + handler.terminator)
                handler.flush()
                kept = True
    return kept


def explain(error: Exception) -> str | None:
    """Return one sentence about a mistake in config or data, None for other errors.

    What may happen to any run is told at any time. What is a mistake in the config can be one
    only while things are built, and where the code that raises it is not the user's own.
    """
    text = ' '.join(str(error).split())
    if isinstance(error, SetupError):
        # of one in a data loader's worker, the text is its traceback
        return text.rpartition('SetupError: ')[2] if text.startswith('Caught ') else text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = 'a file' if error.filename is None else f"'{error.filename}'"
        return (
            f'{what} cannot be written ({error.strerror}): make room; a run then continues from '
            'its last checkpoint with --resume'
        )
    worker = re.search(r'DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited)', text)
    # it may be gone while the images it has sent are being fetched from it
    files = _files(error)
    vanished = isinstance(error, OSError | EOFError) and any(
        file.endswith('torch/multiprocessing/reductions.py') for file in files
    )
    if worker or vanished:
        return (
            f'a worker process of a data loader {worker[1] if worker else "exited"}, most often '
            "because memory has run out (with 'Bus error', shared memory: /dev/shm): lower "
            'num_workers of the loaders or make room, then continue from the last checkpoint with '
            '--resume'
        )
    if found := re.search(r'Expected more than 1 value per channel when training, got .*', text):
        return (
            'train_dataloader: a BatchNorm layer takes its statistics over a batch, and got one of '
            f'a single value per channel ({found[0].rpartition("got ")[2]}): choose a batch_size '
            'that leaves no last batch of one image, or set train_dataloader.drop_last=True'
        )
    if isinstance(error, OSError) and all(map(_familiar, files)):
        # a worker sends the text alone
        if found := re.findall(r"\[Errno \d+\] ([^:]+): '(.*?)'", text):
            return f"'{found[-1][1]}': {found[-1][0]}"
        if error.filename is not None:
            return f"'{error.filename}': {error.strerror}"
    if _in_loop(error) or not (files and _familiar(files[-1])):
        return None
    if isinstance(error, URLError):
        return f'a download failed ({error.reason}): put the files in place beforehand'
    if isinstance(error, HfHubHTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            'the weights that pretrained=True asks for are not in the cache, and the hub cannot be '
            'reached: set pretrained=False and give a local file (--teacher-ckpt, '
            'model.teacher_ckpt, load_from)'
        )
    if isinstance(error, ImportError):
        return _missing_package(error, files)
    if found := re.search(r"Found 0 files in subfolders of: {'img_path': '(.*?)'}", text):
        return f"there are no images in the sub-folders of '{found[1]}': one folder per class"
    if found := re.search(r'Cannot find (\w+) dataset in (\S+?)/?,', text):
        return (
            f"the data set {found[1]} is not, or not wholly, in '{found[2]}': unpack its official "
            'archive there, set dataset.data_root of the loaders to where it is, or let '
            'dataset.download=True fetch it'
        )
    if found := re.search(r'Unknown model \((.*)\)', text):
        return f"timm has no model '{found[1]}'{suggest(found[1], timm.list_models())}"
    if 'end should be larger than begin' in text:
        return (
            'param_scheduler: a part of the schedule would begin after the training has ended: '
            'shorten the warm-up (begin=, end=) or raise train_cfg.max_epochs'
        )
    if 'SyncBatchNorm layers only work with GPU modules' in text:
        return 'sync_bn: BatchNorm over several processes needs GPUs; leave the key out on CPUs'
    return None


def _missing_package(error: ImportError, files: list[str]) -> str:
    """Tell which package a part of the config needs."""
    cause = error if error.name else error.__context__
    package = getattr(cause, 'name', None)
    what = f"the package '{package}'" if package else 'a package'
    text = ' '.join(str(error).split()).rstrip('.')
    if any(file.endswith('vis_backend.py') for file in files):
        return (
            f'visualizer.vis_backends: one of them needs {what}, which cannot be imported '
            f'({text}): install it, or leave the backend out'
        )
    return f'{what} is needed and cannot be imported: {text}'


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _in_loop(error: Exception) -> bool:
    """Return whether all was built, and the training or the test ran."""
    return any(
        frame.f_code.co_name == 'run' and isinstance(frame.f_locals.get('self'), BaseLoop)
        for frame in _frames(error)
    )


def _files(error: Exception) -> list[str]:
    """Return the files that a traceback passes through, in a data loader's worker, too."""
    files = [frame.f_code.co_filename for frame in _frames(error)]
    if str(error).startswith('Caught '):
        files += re.findall(r'^ *File "(.+?)", line', str(error), re.MULTILINE)
    return files


@functools.cache
def _familiar(file: str) -> bool:
    """Return whether a file is of Python, this project or what it is built on."""
    folders = []
    for package in _PACKAGES:
        if (spec := importlib.util.find_spec(package)) and spec.origin:
            folders.append(Path(spec.origin).parent)
    path = Path(file)
    in_python = path.is_relative_to(sysconfig.get_path('stdlib')) and not (
        {'site-packages', 'dist-packages'} & set(path.parts)
    )
    return file.startswith('<') or in_python or any(map(path.is_relative_to, folders))


# --- what was meant in the config ----------------------------------------------


@contextlib.contextmanager
def mistakes_named(config: Config) -> Iterator[None]:
    """Name the key of an unknown ``type`` or argument, when building from a config fails for it."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError) as error:
        if not _in_loop(error):
            nodes = dict(dicts(config.to_dict()))
            if sentence := _type_mistake(error, nodes) or _argument_mistake(error, nodes):
                raise SetupError(sentence) from error
        raise


def dicts(node: Any, path: str = '') -> Iterator[tuple[str, dict]]:
    """Yield all dicts in a config, each with the path of its key."""
    if isinstance(node, dict):
        yield path, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list | tuple):
            yield from dicts(value, f'{path}.{key}' if path else str(key))


def _type_mistake(error: Exception, nodes: dict[str, dict]) -> str | None:
    if not re.search(r'is not in the|Failed to get|None is not a callable', str(error)):
        return None
    for path, node in nodes.items():
        name = node.get('type')
        if isinstance(name, str) and (hint := _unknown_type(name)):
            key = f'{path}.type' if path else 'type'
            return f"{key}: unknown type '{name}'{hint}"
    return None


def _argument_mistake(error: Exception, nodes: dict[str, dict]) -> str | None:
    """Tell which dict of the config has an argument too many, or lacks one.

    A call that fails in this way is a mistake of the config only if it was made with the
    content of one of its dicts; all others are mistakes of a program.
    """
    found = re.search(
        r"(\S+)\(\) (?:got an unexpected keyword argument '(\w+)'|missing .*?: (.*)"
        r'|takes no arguments)',
        str(error),
    )
    frames = _frames(error)
    if not (isinstance(error, TypeError) and found and frames):
        return None
    # The call of mmengine's registry that led here, and what it was to build.
    at = max((i for i, f in enumerate(frames) if f.f_code is _BUILD), default=None)
    built = {} if at is None else frames[at].f_locals
    kind, cfg = built.get('obj_cls'), built.get('cfg', {})
    parts = found[1].split('.')
    name = parts[-2] if parts[-1] == '__init__' and len(parts) > 1 else parts[-1]
    lineage = [c.__name__ for c in getattr(kind, '__mro__', [kind]) if c is not None]
    of_same_type = {
        path: node for path, node in nodes.items() if cfg and node.get('type') == cfg.get('type')
    }
    if key := found[2]:
        given = any(isinstance(v, dict) and key in v for v in frames[-1].f_locals.values())
        paths = [path for path, node in nodes.items() if key in node]
        paths = [path for path in paths if path in of_same_type] or paths
        if not (given and paths):
            return None
        called = kind if name in lineage else frames[-1].f_globals.get(name)
        name = lineage[0] if name in lineage else name
        hint = suggest(key, _parameters(called))
        return f"{paths[0]}: {name} takes no argument '{key}'{hint}"
    passed_on = all(f.f_code.co_flags & inspect.CO_VARKEYWORDS for f in frames[at:][1:])
    if at is None or name not in lineage or not passed_on or not of_same_type:
        return None
    path = next(iter(of_same_type))
    if found[3]:
        return f'{path}: {lineage[0]} needs the argument {found[3]}: add it to its dict'
    given = [key for key in of_same_type[path] if key != 'type']
    return (
        f'{path}: {lineage[0]} takes no arguments: leave {", ".join(given)} out' if given else None
    )


def _parameters(called: Any) -> set[str]:
    """Return the names of a call's arguments; of a class, those of its parents, too."""
    lineage = inspect.getmro(called) if inspect.isclass(called) else ()
    names = set()
    for function in [c.__init__ for c in lineage] or [called]:
        with contextlib.suppress(TypeError, ValueError):
            names.update(inspect.signature(function).parameters)
    return names - {'self', 'args', 'kwargs'}


def _unknown_type(name: str) -> str | None:
    """Return a hint at similar names if no registry knows a type, else None."""
    known: dict[str, set[str]] = {}
    for package in ('mmengine', 'mmpretrain', 'mmrazor', 'mmkd_tas'):
        for registry in vars(importlib.import_module(f'{package}.registry')).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
                for key in registry.module_dict:
                    # MMRazor's recorders and deliveries are named without their suffix
                    for alias in {key, re.sub('(Recorder|Delivery)$', '', key)}:
                        known.setdefault(alias, set()).add(f'{registry.scope}.{alias}')
    scope, _, bare = name.rpartition('.')
    if bare in known and (not scope or name in known[bare]):
        return None
    close = sorted(full for k in difflib.get_close_matches(bare, known, n=3) for full in known[k])
    return f'; did you mean {" or ".join(close)}?' if close else '; there is none of a similar name'
