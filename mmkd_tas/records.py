"""What images a model was trained on, as its own record says."""

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from .checkpoint import PUBLISHED

# The source of what a config says about the model itself.
OWN = 'its data_preprocessor'


class ImageRecord(NamedTuple):
    """The images of a model; None is what the record does not say.

    Attributes:
        source: Whose record it is, for the log.
        mean, std: Per channel, of pixels from 0 to 255.
        size: ``(H, W)`` in pixels.
        bgr: Whether the channels are in the order blue, green, red.
    """

    source: str
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: tuple[int, int] | None = None
    bgr: bool = False


def records_of(model: nn.Module, path: str | None = None, checkpoint: Any = None) -> list:
    """Return what is on record about a model's images, the closest to its weights first.

    Args:
        model: Any classifier.
        path: Where its weights were loaded from.
        checkpoint: What was in that file.

    Returns:
        :class:`ImageRecord` s: of the run that wrote the checkpoint, of the folder that it
        is in, of the model's ``data_preprocessor``, of the library that the model is of.
    """
    found = [
        _of_run(checkpoint),
        *(_of_folder(Path(path)) if path is not None and '://' not in str(path) else ()),
        _of_preprocessor(getattr(model, 'data_preprocessor', None)),
        *map(_of_module, model.modules()),
    ]
    return [record for record in found if record is not None]


def normalisation(preprocessor: nn.Module | None) -> tuple[list, list] | None:
    """Return mean and std of a data preprocessor, or None if it does not normalise."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return None
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()


def of_transforms(transforms: Any) -> ImageRecord:
    """Return the record of the transforms of torchvision's weights."""
    size = transforms.crop_size
    return ImageRecord(
        "torchvision's record", _pixels(transforms.mean), _pixels(transforms.std), _pair(size)
    )


def _of_run(checkpoint: Any) -> ImageRecord | None:
    """Return the record of a run of mmengine, in the config that its checkpoints hold."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    config = _literals(text) if isinstance(text, str) else {}
    model = config.get('model')
    model = model if isinstance(model, dict) else {}
    given = model.get('data_preprocessor') or config.get('data_preprocessor')
    if not isinstance(given, dict):
        return None
    mean, std = given.get('mean') or [0.0], given.get('std') or [1.0]
    if max(mean) <= 1 and max(std) < 1:  # its pipeline gave images from 0 to 1
        mean, std = _pixels(mean), _pixels(std)
    size = model.get('input_size') or config.get('input_size')
    return ImageRecord('the run that trained it', mean, std, size and _pair(size))


def _literals(text: str) -> dict:
    """Return the plain values in the text of a config, which is not run."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
            return {word.arg: value(word.value) for word in node.keywords}
        try:
            return ast.literal_eval(node)
        except ValueError:
            return None

    try:
        lines = ast.parse(text).body
    except SyntaxError:  # a checkpoint of the user's own, with another thing of that name
        return {}
    return {
        line.targets[0].id: value(line.value)
        for line in lines
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    }


def _of_folder(path: Path) -> list[ImageRecord | None]:
    """Return the records in a folder as timm and Hugging Face write them."""
    if not path.is_dir() and path.name not in PUBLISHED:
        return []
    folder = path if path.is_dir() else path.parent
    config = folder / 'config.json'
    declared = json.loads(config.read_text()) if config.is_file() else {}
    return [
        _of_timm(declared.get('pretrained_cfg')),
        _of_hugging_face(folder) if (folder / 'preprocessor_config.json').is_file() else None,
    ]


def _of_preprocessor(preprocessor: nn.Module | None) -> ImageRecord | None:
    found = normalisation(preprocessor)
    return found and ImageRecord(OWN, *found)


def _of_module(module: nn.Module) -> ImageRecord | None:
    declared = getattr(module, 'image_record', None)
    if isinstance(declared, ImageRecord):
        return declared
    if any(kind.__name__ == 'PreTrainedModel' for kind in type(module).__mro__):
        size = getattr(module.config, 'image_size', None)
        built = ImageRecord("Hugging Face's config", size=_pair(size)) if size else None
        return _of_hugging_face(module.name_or_path) or built
    return _of_timm(getattr(module, 'pretrained_cfg', None))


def _of_timm(declared: Any) -> ImageRecord | None:
    if not isinstance(declared, Mapping) or not declared.get('mean'):
        return None
    size = declared.get('input_size')
    return ImageRecord(
        "timm's record",
        _pixels(declared['mean']),
        _pixels(declared.get('std') or (1.0,)),
        size and _pair(size[-2:]),
    )


def _of_hugging_face(name: str | Path) -> ImageRecord | None:
    """Return the record of the processor of a model on the hub or in a folder."""
    if not name:
        return None
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError):  # there is none
        return None
    get = processor.to_dict().get
    # x * factor, or of some x * factor - 1, then (x - mean) / std, each where it says so
    factor = get('rescale_factor') if get('do_rescale') else 1.0
    offset = 1.0 if get('do_rescale') and get('rescale_offset') else 0.0
    mean, std = ((0.0,) * 3, (1.0,) * 3)
    if get('do_normalize'):
        mean, std = get('image_mean'), get('image_std')
    size = get('crop_size') if get('do_center_crop') else get('size')
    size = size if isinstance(size, Mapping) else {}
    side = size.get('shortest_edge')
    pair = (size.get('height', side), size.get('width', side))
    return ImageRecord(
        "Hugging Face's processor",
        [(value + offset) / factor for value in mean],
        [value / factor for value in std],
        pair if None not in pair else None,
        bool(get('do_flip_channel_order')),
    )


def _pixels(values: Sequence[float]) -> list[float]:
    return [255 * value for value in values]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    size = [size] if isinstance(size, int) else [*size]
    return (size[0], size[-1])
