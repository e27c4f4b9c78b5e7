"""Images of one's own, in a folder for each class."""

import inspect
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpretrain.datasets import CustomDataset

from .compat import write_whole
from .errors import SetupError

# How the folder of the validation images may be called.
_VALIDATION = ('val', 'valid', 'validation', 'test')
_ENDINGS = inspect.signature(CustomDataset).parameters['extensions'].default


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
