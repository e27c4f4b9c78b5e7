"""Evaluate a model on the test data of its config.

Of a distillation config only the student is built; the teacher need not be there.

Examples:
  mmkd-tas test CONFIG CHECKPOINT
  mmkd-tas test work_dirs/RUN/RUN.py student.pth --out metrics.json
"""

import argparse
import tempfile
from pathlib import Path

import mmengine

from .. import cli
from ..checkpoint import load_weights
from ..models.utils import unwrapped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    cli.add_run_arguments(
        parser, work_dir='keep the log, in its sub-folder `test`; else nothing is kept'
    )
    parser.add_argument('checkpoint', help='of the training run, or an exported student')
    parser.add_argument('--out', help='write the metrics to this .json or .yml file')


def main(args: argparse.Namespace) -> None:
    """Evaluate."""
    config = cli.student_config(cli.load_config(args))
    if args.amp:
        config.test_cfg.fp16 = True
    # Nothing of the training is built.
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        config[key] = None
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'load_from'):
        config[key] = None
    config.resume = False
    # mmengine writes a config and a log at once, and other tools read those of a training.
    with tempfile.TemporaryDirectory() as nowhere, cli.mistakes_named(config):
        config.work_dir = str(Path(args.work_dir, 'test')) if args.work_dir else nowhere
        runner = cli.Runner.from_cfg(config)
        load_weights(unwrapped(runner.model), args.checkpoint, 'checkpoint')
        metrics = runner.test()
    if args.out:
        mmengine.dump({key: float(value) for key, value in metrics.items()}, args.out)
