"""What the command line tools share: arguments, and errors told in one sentence."""

import argparse
import contextlib
import copy
import difflib
import errno
import importlib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
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
from mmengine.logging import MMLogger
from mmengine.registry import Registry

from . import configs
from .errors import SetupError, suggest

HELP = {
    'dataset': 'a file of configs/_base_/datasets',
    'pair': 'TEACHER,STUDENT: files of configs/_base_/models (of two files also TEACHER_STUDENT), '
    'or timm:NAME, torchvision:NAME, hf:NAME or hf:FOLDER',
    'teacher': 'the one of the pair, in place of --pair',
    'student': 'the other',
    'method': 'a file of configs/_base_/methods; `teacher` or `student`: one of the two alone',
}


def add_run_arguments(
    parser: argparse.ArgumentParser, work_dir: str = 'where logs and checkpoints go'
) -> None:
    """Add what tells the config, and the options that training and testing share."""
    parser.add_argument('config', nargs='?', help='config file')
    composed = parser.add_argument_group('in place of a config file')
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


def load_config(args: argparse.Namespace) -> Config:
    """Return the config that the arguments describe."""
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
    config = configs.load_config(args.config) if args.config else configs.compose(*parts)
    configs.merge_options(config, args.cfg_options)
    config.launcher = args.launcher
    _check_wrapper(config)
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
    return config


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
    """Run a tool; a mistake of the user ends it with one sentence and status 1."""
    try:
        main()
    except Exception as error:
        # PyTorch's handler would interrupt the explanation when one more worker dies
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if sentence := explain(error):
            sys.exit(f'error: {sentence}')
        raise


def explain(error: Exception) -> str | None:
    """Return one sentence about a mistake in config or data, None for other errors."""
    text = ' '.join(str(error).split())
    if isinstance(error, SetupError):
        # of one in a data loader's worker, the text is its traceback
        return text.rpartition('SetupError: ')[2] if text.startswith('Caught ') else text
    if isinstance(error, URLError):
        return f'a download failed ({error.reason}): put the files in place beforehand'
    if isinstance(error, HfHubHTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            'the weights that pretrained=True asks for are not in the cache, and the hub cannot be '
            'reached: set pretrained=False and give a local file (model.teacher_ckpt, load_from)'
        )
    if isinstance(error, ImportError) and 'please install' in text:
        return text
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = 'a file' if error.filename is None else f"'{error.filename}'"
        return (
            f'{what} cannot be written ({error.strerror}): make room; a training then goes on from '
            'its last checkpoint with --resume'
        )
    worker = re.search(r'DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited)', text)
    # it may be gone while the images it has sent are being fetched from it
    frames = traceback.extract_tb(error.__traceback__)
    vanished = isinstance(error, OSError | EOFError) and any(
        frame.filename.endswith('torch/multiprocessing/reductions.py') for frame in frames
    )
    if worker or vanished:
        return (
            f'a worker process of a data loader {worker[1] if worker else "exited"}, most often '
            "because memory has run out (with 'Bus error', shared memory: /dev/shm): lower "
            'num_workers of the loaders or make room, then go on from the last checkpoint with '
            '--resume'
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"'{error.filename}': {error.strerror}"
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
    if isinstance(error, TypeError):
        if found := re.search(
            r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text
        ):
            return f"{found[1]} takes no argument '{found[2]}': check the keys of its dict"
        if found := re.search(r'(\w+)\.__init__\(\) missing .*?: (.*)', text):
            return f'{found[1]} needs the argument {found[2]}: add it to its dict'
    return None


@contextlib.contextmanager
def types_checked(config: Config) -> Iterator[None]:
    """Name the key of an unknown ``type``, when building from a config fails for it."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError) as error:
        if re.search(r'is not in the|Failed to get|None is not a callable', str(error)):
            for key, name in _types(config.to_dict()):
                if hint := _unknown_type(name):
                    raise SetupError(f"{key}: unknown type '{name}'{hint}") from error
        raise


def _types(node: Any, path: str = '') -> Iterator[tuple[str, str]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        here = f'{path}.{key}' if path else str(key)
        if key == 'type' and isinstance(value, str):
            yield here, value
        elif isinstance(value, dict | list | tuple):
            yield from _types(value, here)


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
