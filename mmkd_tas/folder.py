"""Training on a folder of images from one line: data, teacher, student, and their table."""

import argparse
import functools
import inspect
import io
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmpretrain.datasets import CustomDataset

from . import cli, configs
from .checkpoint import load_weights
from .compat import write_whole
from .errors import SetupError
from .records import records_of
from .registry import MODELS
from .runs import newest_config

# How the folder of the validation images may be called.
_VALIDATION = ('val', 'valid', 'validation', 'test')
_ENDINGS = inspect.signature(CustomDataset).parameters['extensions'].default
# Parts of --cfg-options that a teacher's training shares with its student's.
_SHARED = ('train_dataloader', 'val_dataloader', 'default_hooks', 'env_cfg', 'randomness')
_SHARED += ('visualizer', 'log_level')


@dataclass
class ImageFolder:
    """Images in a folder for each class, divided into those to train and to validate with.

    Attributes:
        root: What holds the folders.
        classes: Their names, in the order of the labels.
        parts: ``{'train': ..., 'val': ...}``: the images by class, paths below root.
        held_out: Whether the validation images were taken from the others here.
        val: Name of the folder of the validation images.
    """

    root: Path
    classes: list[str]
    parts: dict[str, dict[str, list[str]]]
    held_out: bool
    val: str = ''

    @classmethod
    def read(cls, root: str, hold_out: float | None = None) -> 'ImageFolder':
        """Look at a folder: ``train/CLASS/*`` and ``val/CLASS/*``, or ``CLASS/*``.

        Args:
            root: The folder.
            hold_out: Share of the images of each class to validate with, where they are not in
                folders of their own; the same images in every run.

        Raises:
            SetupError: If there is no such folder, it has no classes, a class has too few
                images, or the two parts have different classes.
        """
        top = Path(root)
        if not top.is_dir():
            raise SetupError(f"--data: there is no folder '{root}'")
        base = top / 'train' if (top / 'train').is_dir() else top
        val = next((n for n in _VALIDATION if base != top and (top / n).is_dir()), None)
        if hold_out is not None and not 0 < hold_out < 1:
            raise SetupError(f'--hold-out: {hold_out:g} is not a share between 0 and 1; write 0.2')
        if val and hold_out is not None:
            raise SetupError(
                f"--hold-out: '{top / val}' has images to validate with; leave --hold-out out"
            )
        train = _images(base)
        if len(train) < 2:
            raise SetupError(f"--data: '{base}' has {_few([*train])} alone; 2 are needed at least")
        if val:
            parts = {'train': train, 'val': _images(top / val)}
            _check_same(base, top / val, parts)
            return cls(top, list(train), parts, False, val)
        if hold_out is None:
            raise SetupError(
                f"--data: '{root}' has no images to validate with; put some into "
                f"'{top / 'val'}/CLASS' (and the others into '{top / 'train'}/CLASS'), or write "
                '--hold-out 0.2 to take a fifth of those of each class'
            )
        few = [name for name, images in train.items() if len(images) < 2]
        if few:
            raise SetupError(
                f"--hold-out: in '{base}' {_few(few)} has a single image, and one to train and one "
                'to validate with are needed; add images, or remove the class'
            )
        parts = {'train': {}, 'val': {}}
        for name, images in train.items():
            count = min(max(1, round(hold_out * len(images))), len(images) - 1)
            chosen = {*random.Random(0).sample(images, count)}
            parts['train'][name] = [image for image in images if image not in chosen]
            parts['val'][name] = [image for image in images if image in chosen]
        return cls(base, list(train), parts, True)

    def count(self, part: str) -> int:
        """Return the number of images."""
        return sum(map(len, self.parts[part].values()))

    def options(self, work_dir: Path) -> dict[str, Any]:
        """Return what the config of a training gets; writes lists of what was held out."""
        found: dict[str, Any] = {'data_preprocessor.num_classes': len(self.classes)}
        for loader, part in (('train', 'train'), ('val', 'val'), ('test', 'val')):
            dataset = f'{loader}_dataloader.dataset'
            found[f'{dataset}.data_root'] = str(self.root)
            if not self.held_out:
                found[f'{dataset}.data_prefix'] = self.val if part == 'val' else part
                continue
            file = work_dir.absolute() / f'{part}.txt'
            lines = (
                f'{image} {label}\n'
                for label, images in enumerate(self.parts[part].values())
                for image in images
            )
            write_whole(''.join(lines).encode(), file)
            found[f'{dataset}.data_prefix'] = ''
            found[f'{dataset}.ann_file'] = str(file)
            found[f'{dataset}.classes'] = self.classes
        return found


def _images(folder: Path) -> dict[str, list[str]]:
    """Return the images by class, in MMPretrain's order."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != '.')
    found = {
        name: sorted(
            str(path.relative_to(folder))
            for path in (folder / name).rglob('*')
            if path.suffix.lower() in _ENDINGS
        )
        for name in classes
    }
    flat = sum(path.suffix.lower() in _ENDINGS for path in folder.iterdir())
    if not classes:
        what = f'{flat} images and no folders' if flat else 'neither images nor folders'
        raise SetupError(
            f"--data: '{folder}' holds {what}; put the images of each class into a folder of "
            'their own, named like the class'
        )
    empty = [name for name, images in found.items() if not images]
    if empty:
        raise SetupError(
            f"--data: in '{folder}' {_few(empty)} has no images ({', '.join(_ENDINGS)}); add some, "
            'or remove the folder'
        )
    return found


def _check_same(train: Path, val: Path, parts: dict[str, dict]) -> None:
    """Refuse classes that only one of the parts has."""
    ours, theirs = (parts[part].keys() for part in ('train', 'val'))
    for extra, folder, other in ((theirs - ours, val, train), (ours - theirs, train, val)):
        if extra:
            raise SetupError(
                f"--data: '{folder}' has {_few(sorted(extra))}, which '{other}' has not; both need "
                'the same classes'
            )


def _few(names: list[str], most: int = 5) -> str:
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return f'class {", ".join(map(repr, names[:most]))}{more}'


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
        from .commands import compare

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
