"""Train a model, with or without a teacher.

Examples:
  mmkd-tas train --data data/mine --teacher timm:vit_base_patch16_224 --teacher-epochs 20 \\
      --student timm:mobilenetv3_small_100 --method tas-rsd --baseline
  mmkd-tas train CONFIG
  mmkd-tas train CONFIG --resume
  mmkd-tas train --dataset digits --pair resnet18-w16_vit-w64 --method teacher
  mmkd-tas train --dataset digits200 --pair resnet18-w16_vit-w64 --method tas \\
      --cfg-options model.teacher_ckpt=work_dirs/resnet18-w16_digits
  torchrun --nproc_per_node=GPUS -m mmkd_tas train CONFIG --launcher pytorch
"""

import argparse
from pathlib import Path

from mmengine.config import Config

from .. import cli
from ..checkpoint import hand_over, newest_checkpoint, read_checkpoint
from ..errors import SetupError
from .one_line import OneLine

_OWN = ('hold_out', 'teacher_ckpt', 'teacher_epochs', 'epochs', 'batch_size', 'input_size')
_OWN += ('baseline',)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    cli.add_run_arguments(parser)
    own = parser.add_argument_group(
        'your own images, instead of --dataset; --cfg-options are then those of the student'
    )
    own.add_argument(
        '--data', metavar='FOLDER', help='train/CLASS/* and val/CLASS/*, or CLASS/* with --hold-out'
    )
    own.add_argument(
        '--hold-out', type=float, metavar='SHARE', help='of the images of a class, to validate with'
    )
    own.add_argument('--teacher-ckpt', metavar='FILE', help='of a teacher that knows the classes')
    own.add_argument(
        '--teacher-epochs',
        type=int,
        metavar='N',
        help='fine-tune the teacher first, from --teacher-ckpt or the weights of its library',
    )
    own.add_argument('--epochs', type=int, help='of the student; by default 100')
    own.add_argument('--batch-size', type=int, help='by default 64; the learning rate follows')
    own.add_argument('--input-size', type=int, help='of the images, in pixels; by default 224')
    own.add_argument(
        '--baseline', action='store_true', help='also train the student without a teacher'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='CHECKPOINT',
        help="continue from the work dir's latest checkpoint, or from the given file or folder; "
        '`auto` starts a new run if there is none',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )


def find_start(resume: str, work_dir: str) -> tuple[Path, dict] | None:
    """Return the checkpoint that ``--resume`` asks for: its file and what is in it.

    None means to start a new run.
    """
    if resume not in ('latest', 'auto') and not Path(resume).is_dir():
        return Path(resume), read_checkpoint(resume)
    folder = work_dir if resume in ('latest', 'auto') else resume
    found = newest_checkpoint(folder)
    if found is None and resume != 'auto':
        raise SetupError(
            f"--resume: there is no whole checkpoint in '{folder}'; leave --resume out, or write "
            '`--resume auto`, to start a new run'
        )
    return found


def set_start(config: Config, resume: str | None) -> int | None:
    """Write into a config what it starts from; return how many epochs are done if it resumes.

    The file is read here, which tells of one that is unsafe, broken or absent, and only here.
    """
    done = None
    if resume and (found := find_start(resume, config.work_dir)):
        path, checkpoint = found
        done = checkpoint.get('meta', {}).get('epoch', 0)
        config.load_from, config.resume = str(path), True
    elif config.get('load_from'):
        checkpoint = read_checkpoint(config.load_from)
    else:
        return None
    hand_over(config.load_from, checkpoint)
    return done


def main(args: argparse.Namespace) -> None:
    """Train."""
    if args.data:
        OneLine.of(args).run(lambda config: train(config, args, args.resume or 'auto'))
        return
    for name in _OWN:
        if getattr(args, name):
            raise SetupError(f'--{name.replace("_", "-")}: it goes with --data')
    train(cli.load_config(args), args, args.resume)


def train(config: Config, args: argparse.Namespace, resume: str | None) -> None:
    """Train a model as its config says, from what ``--resume`` says."""
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
    if args.auto_scale_lr:
        if not config.get('auto_scale_lr', {}).get('base_batch_size'):
            raise SetupError(
                '--auto-scale-lr: the config does not say which batch size its learning rate is '
                'for; add auto_scale_lr=dict(base_batch_size=...)'
            )
        config.auto_scale_lr.enable = True
    done = set_start(config, resume)
    if done is not None and done >= config.train_cfg.get('max_epochs', float('inf')):
        print(f'{config.work_dir}: already trained for {done} epochs, nothing to do')
        return
    with cli.mistakes_named(config):
        runner = cli.Runner.from_cfg(config)
        if done is not None:
            runner.logger.info(f'Resuming from {config.load_from}, after epoch {done}')
        runner.train()
    for loop in (runner.train_loop, runner.val_loop):
        # Workers that are found in a later garbage collection are waited for, 5 s each.
        if (loader := getattr(loop, 'dataloader', None)) is not None:
            loader._iterator = None
