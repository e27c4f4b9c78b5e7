"""``mmkd-tas train --data``: a teacher, its student and a baseline on a folder of images."""

import argparse
import functools
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from .. import cli, configs
from ..checkpoint import load_weights
from ..compat import write_whole
from ..errors import SetupError
from ..folder import ImageFolder
from ..records import records_of
from ..registry import MODELS
from ..runs import newest_config
from . import compare

# Parts of --cfg-options that a teacher's training shares with its student's.
_SHARED = ('train_dataloader', 'val_dataloader', 'default_hooks', 'env_cfg', 'randomness')
_SHARED += ('visualizer', 'log_level')


@dataclass
class OneLine:
    """The trainings that one line asks for: of the teacher, the student, and that alone.

    Args:
        args: Of the command line.
        data: What ``--data`` names.
        work_dir: Where the work dirs of the trainings go.
    """

    args: argparse.Namespace
    data: ImageFolder
    work_dir: Path

    @classmethod
    def of(cls, args: argparse.Namespace) -> 'OneLine':
        """Check the arguments.

        Raises:
            SetupError: If they do not fit together, or the data are not understood.
        """
        if args.config or args.dataset:
            raise SetupError('--data: leave out the config file and --dataset')
        if args.method in configs.ALONE or not (args.teacher and args.student and args.method):
            raise SetupError(
                '--data: give --teacher, --student and --method (tas-rsd is a good one to start '
                'with; `mmkd-tas list methods` shows all)'
            )
        data = ImageFolder.read(args.data, args.hold_out)
        name = f'{Path(args.data).absolute().name}_{args.method}_{args.teacher}_{args.student}'
        work_dir = Path(args.work_dir or Path('work_dirs') / configs.file_name(name))
        return cls(args, data, work_dir)

    def configs(self) -> dict[str, Config]:
        """Return the config of each training, in the order in which they are run."""
        args = self.args
        distilled = self._config(args.method, 'distilled', args.epochs, args.cfg_options)
        found = {}
        if args.teacher_epochs:
            shared = {k: v for k, v in args.cfg_options.items() if k.partition('.')[0] in _SHARED}
            found['teacher'] = self._config('teacher', 'teacher', args.teacher_epochs, shared)
            self._begin_teacher(found['teacher'])
            distilled.model.teacher_ckpt = str(self.work_dir / 'teacher')
        else:
            self._take_teacher(distilled)
        found[args.method] = distilled
        if args.baseline:
            own = {
                key.replace('model.architecture.', 'model.'): value
                for key, value in args.cfg_options.items()
                if key.startswith('model.architecture.') or not key.startswith('model.')
            }
            found['student alone'] = self._config('student', 'alone', args.epochs, own)
        return found

    def _begin_teacher(self, config: Config) -> None:
        """Let the fine-tuning of the teacher begin with the weights and the images it knows."""
        path = self.args.teacher_ckpt
        model = MODELS.build(config.model)
        record = next((r for r in records_of(model, path) if r.mean is not None), None)
        if record is not None:
            config.data_preprocessor.update(mean=record.mean, std=record.std)
        if path:
            load_weights(model, path, '--teacher-ckpt', len(self.data.classes))
            start, data = self.work_dir / 'pretrained.pth', io.BytesIO()
            torch.save({'state_dict': model.state_dict()}, data)
            write_whole(data.getvalue(), start)
            config.load_from = str(start)
        elif config.model.type == configs.CLASSIFIER:
            config.model.pretrained = True

    def _take_teacher(self, config: Config) -> None:
        """Give a distillation the teacher that is there."""
        model, path = config.model, self.args.teacher_ckpt
        if path:
            model.teacher_ckpt = path
        given = model.get('teacher_ckpt') or model.teacher.get('pretrained')
        mappings = model.distiller.loss_forward_mappings.values()
        if not given and any('teacher.logits' in mapping.values() for mapping in mappings):
            raise SetupError(
                f'--teacher: {self.args.teacher} does not know the {len(self.data.classes)} '
                'classes of the data: give the checkpoint of one that was trained on them '
                '(--teacher-ckpt), or write --teacher-epochs 20 to fine-tune it here first'
            )
        if not given:
            model.teacher.update(pretrained=True, num_classes=0)
        trained = newest_config(Path(path)) if path and Path(path).is_dir() else None
        if 'img_size' in model.teacher:  # that of its weights
            size = trained and configs.load_config(trained).get('input_size')
            model.teacher.img_size = size

    def _config(self, method: str, folder: str, epochs: int | None, options: dict) -> Config:
        count = self.data.count('train')
        base = dict(self.data.options(self.work_dir))
        names = {'teacher': self.args.teacher, 'student': self.args.student}
        read = functools.partial(
            cli.load_config,
            argparse.Namespace(
                **{
                    **vars(self.args),
                    'dataset': 'folder',
                    'pair': f'{names["teacher"]},{names["student"]}',
                    'teacher': None,
                    'student': None,
                    'method': method,
                    'work_dir': str(self.work_dir / folder),
                    'cfg_options': options,
                }
            ),
        )
        batch = self.args.batch_size
        if batch is not None:
            base['train_dataloader.batch_size'] = batch
        config = read(base_options=base, input_size=self.args.input_size)
        loader = config.train_dataloader
        loader.batch_size = min(loader.batch_size, count)
        # a batch of one image is none for BatchNorm
        loader.setdefault('drop_last', count % loader.batch_size == 1)
        for part in (loader, config.val_dataloader, config.test_dataloader):
            part.num_workers = min(part.num_workers, os.cpu_count() or 1)
            part.persistent_workers = part.num_workers > 0
        if epochs is not None:
            configs.set_epochs(config, epochs)
        return config

    def run(self, train: Callable[[Config], None]) -> None:
        """Train one after the other, and print how they compare."""
        todo = self.configs()
        self._say(todo)
        for config in todo.values():
            train(config)
        if is_main_process():
            self._conclude({label: config.work_dir for label, config in todo.items()})

    def _say(self, todo: dict[str, Config]) -> None:
        """Print what was found and chosen."""
        data = self.data
        held = ', held out by --hold-out' if data.held_out else ''
        print(
            f'data: {len(data.classes)} classes, {data.count("train"):,} images to train and '
            f'{data.count("val"):,} to validate with{held}'
        )
        for label, config in todo.items():
            optimizer = config.optim_wrapper.optimizer
            recipe = re.search(r'recipes/(\w+)\.py', config.text)[1]
            print(
                f'{label}: recipe {recipe}, {optimizer.type}, lr {optimizer.lr:g} per '
                f'{config.auto_scale_lr.base_batch_size} images, '
                f'{config.train_cfg.max_epochs} epochs, batch '
                f'{config.train_dataloader.batch_size}, {config.input_size} px -> {config.work_dir}'
            )

    def _conclude(self, folders: dict[str, str]) -> None:
        print()
        compare.main(
            argparse.Namespace(
                runs=[f'{label}={path}' for label, path in folders.items()], out=None
            )
        )
        run = folders[self.args.method]
        lines = [
            ('use the student elsewhere', f'mmkd-tas export {run} --to folder'),
            ('change anything and train again', f'edit {newest_config(Path(run))}, mmkd-tas train'),
        ]
        if not self.args.baseline:
            lines.append(('see what the teacher brought', 'the same line with --baseline'))
        print('next:')
        for what, how in lines:
            print(f'  {what}: {how}')
