"""What the command line tools share: arguments, configs and how a run ends."""

import argparse
import contextlib
import copy
import inspect
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import mmengine.runner
import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.visualization import BaseVisBackend, Visualizer

from . import compat, configs
from .compat import SAFETY_HOOKS, add_hooks
from .errors import SetupError
from .explain import dicts, explain, in_loop, mistakes_named

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
__all__ = ['Runner', 'add_run_arguments', 'dicts', 'explain', 'load_config', 'mistakes_named']
__all__ += ['prefer_fused', 'run', 'student_config']
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
            f'env_cfg.float32_matmul_precision: {precision!r} is not one of '
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
        if not kept and in_loop(error) and not isinstance(error, SetupError):
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
