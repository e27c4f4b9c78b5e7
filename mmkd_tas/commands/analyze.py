"""Show why a student got better.

Writes report.html, which holds all of it, and its pictures: how alike the features of
teacher, assistant and student are, before and after the distillation; the features of one
image; and how often student and teacher agree on the images of each class.

Examples:
  mmkd-tas analyze CONFIG CHECKPOINT --out DIR
  mmkd-tas analyze work_dirs/RUN/RUN.py work_dirs/RUN --before work_dirs/ALONE --out DIR
"""

import argparse
import inspect
from pathlib import Path

from matplotlib import pyplot as plt
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import DataLoader

from .. import cli, configs
from ..analysis import FeatureReader, measure, write_report
from ..analysis.measured import MIN_BATCH
from ..checkpoint import load_weights
from ..errors import SetupError
from ..models import CrossArchDistill
from ..models.algorithms.cross_arch_distill import load_student
from ..stages import describe, view_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument('config', help='config of a distillation; the one in its work dir will do')
    parser.add_argument('checkpoint', help='of the run, or its work dir')
    parser.add_argument(
        '--before',
        metavar='CHECKPOINT',
        help='student to compare with: checkpoint or work dir of a run of the student alone; by '
        'default it is newly initialised',
    )
    parser.add_argument('--images', type=int, default=512, help='number of images for CKA')
    parser.add_argument('--image-index', type=int, default=0, help='of the image that is shown')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE'
    )


def load_models(config: Config, args: argparse.Namespace) -> tuple[CrossArchDistill, BaseModel]:
    """Return the distillation of the checkpoint, and the student before."""
    name = config.get('model', {}).get('type')
    kind = MODELS.get(name) if isinstance(name, str) else name
    if not (inspect.isclass(kind) and issubclass(kind, CrossArchDistill)):
        raise SetupError(
            f"config: model.type of '{args.config}' is {name!r}; give the config "
            " of a distillation, 'mmkd_tas.CrossArchDistill'"
        )
    if config.get('data_preprocessor'):
        config.model.setdefault('data_preprocessor', config.data_preprocessor)
    student_stages, start = map(config.model.get, ('student_stages', 'student_ckpt'))
    with cli.mistakes_named(config):
        model = MODELS.build(config.model)
        set_random_seed(0)
        before = MODELS.build(cli.student_config(config).model)
    load_weights(model, args.checkpoint, 'checkpoint')
    describe(before, view_of(model.student).input_size, student_stages)
    if args.before:
        load_weights(before, args.before, '--before')
    elif start is not None:
        load_student(before, start)
    else:
        before.init_weights()
    return model.to(get_device()), before.to(get_device())


def load_data(config: Config, args: argparse.Namespace) -> DataLoader:
    """Return the validation data, shuffled: they may be in the order of the classes."""
    if not config.get('val_dataloader'):
        raise SetupError(f"val_dataloader: '{args.config}' has none; add one")
    config.val_dataloader.sampler = dict(type='DefaultSampler', shuffle=True, seed=0)
    with cli.mistakes_named(config):
        loader = Runner.build_dataloader(config.val_dataloader)
    count = len(loader.dataset)
    if args.image_index not in range(count):
        raise SetupError(
            f'--image-index: {args.image_index} is not between 0 and {count - 1}, the last of the '
            'validation images'
        )
    if min(args.images, loader.batch_size, count) < MIN_BATCH:
        raise SetupError(
            f'--images: CKA needs batches of at least 4 images, and there are {args.images} of '
            f'{count} in batches of {loader.batch_size}; raise --images or '
            'val_dataloader.batch_size'
        )
    return loader


def main(args: argparse.Namespace) -> None:
    """Analyse."""
    plt.switch_backend('agg')
    MMLogger.get_instance('analyze', log_level='WARNING')
    config = configs.load_config(args.config)
    configs.merge_options(config, args.cfg_options)
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    loader = load_data(config, args)
    reader = FeatureReader(*load_models(config, args))
    classes, known = (
        loader.dataset.metainfo.get('classes'),
        view_of(reader.model.student).num_classes,
    )
    if classes and len(classes) != known:
        raise SetupError(
            f'val_dataloader: the data set has {len(classes)} classes and the student {known}; '
            'choose other data'
        )
    args.out.mkdir(parents=True, exist_ok=True)
    measured = measure(reader, loader, args.images)
    shown = args.image_index, args.config, args.checkpoint, args.before
    if said := write_report(args.out, measured, reader, loader, *shown):
        print(said)
    print(f'{args.out / "report.html"}')
