"""Train a model, with or without a teacher.

python tools/train.py CONFIG
python tools/train.py --dataset digits200 --pair resnet18-w16_vit-w64 --method tas
"""

import argparse
from pathlib import Path

from mmkd_tas import cli
from mmkd_tas.checkpoint import find_checkpoint, read_checkpoint
from mmkd_tas.errors import SetupError


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Train a model, with or without a teacher.')
    cli.add_run_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='CHECKPOINT',
        help="go on from the work dir's latest checkpoint, or from the given file or folder; "
        '`auto` starts anew where there is none',
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
    )
    return parser.parse_args()


def find_start(resume: str, work_dir: str) -> Path | None:
    """Return the checkpoint that ``--resume`` asks for, None to start anew."""
    if resume not in ('latest', 'auto') and not Path(resume).is_dir():
        return Path(resume)
    folder = work_dir if resume in ('latest', 'auto') else resume
    found = find_checkpoint(folder)
    if found is None and resume != 'auto':
        raise SetupError(
            f"--resume: there is no whole checkpoint in '{folder}'; leave --resume out, or write "
            '`--resume auto`, to start a new run'
        )
    return found


def main() -> None:
    """Train."""
    args = parse_args()
    config = cli.load_config(args)
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        config.optim_wrapper.type = 'AmpOptimWrapper'
    if args.auto_scale_lr:
        if not config.get('auto_scale_lr', {}).get('base_batch_size'):
            raise SetupError(
                '--auto-scale-lr: the config does not tell for which batch size its learning rate '
                'is meant; add auto_scale_lr=dict(base_batch_size=...)'
            )
        config.auto_scale_lr.enable = True
    start = find_start(args.resume, config.work_dir) if args.resume else None
    if start is not None:
        done = read_checkpoint(start).get('meta', {}).get('epoch', 0)
        if done >= config.train_cfg.get('max_epochs', float('inf')):
            print(f'{config.work_dir}: already trained for {done} epochs, nothing to do')
            return
        config.load_from, config.resume = str(start), True
    elif config.get('load_from'):
        read_checkpoint(config.load_from)  # names a file that is unsafe, broken or absent
    with cli.mistakes_named(config):
        runner = cli.Runner.from_cfg(config)
        if start is not None:
            runner.logger.info(f'Resuming from {start}, after epoch {done}')
        runner.train()


if __name__ == '__main__':
    cli.run(main)
