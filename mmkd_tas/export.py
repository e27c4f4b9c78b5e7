"""Students in the formats of other libraries and runtimes."""

import contextlib
import inspect
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmpretrain.apis import get_model
from torch import Tensor, nn

from . import cli, configs
from .checkpoint import load_weights
from .compat import write_whole
from .errors import SetupError
from .explain import told
from .outputs import built_for
from .records import normalisation
from .runs import newest_config

# Of logits: how far those of an exported file may be from PyTorch's.
_TOLERANCE = 1e-4
# Of ONNX; the exporter of every PyTorch since 2.1 writes it.
_OPSET = 17


@dataclass
class Student:
    """The trained student of a run and what its images are.

    Attributes:
        model: A classifier of mmpretrain, in eval mode, on the CPU.
        config: Of the run, with the student as its model.
        meta: Of the checkpoint: ``dataset_meta``, ``epoch``, ``iter``.
        size: ``(H, W)`` of the images in pixels, None where the config does not say.
        mean, std: Of pixels from 0 to 1, per channel.
        bgr: Whether the channels of its images are blue, green and red.
    """

    model: nn.Module
    config: Config
    meta: dict[str, Any]
    size: tuple[int, int] | None
    mean: list[float]
    std: list[float]
    bgr: bool

    @classmethod
    def of_run(cls, run: str | Path, checkpoint: str | Path | None = None) -> 'Student':
        """Load the student of a run.

        Args:
            run: A work dir, or the config of the run.
            checkpoint: By default the newest of the work dir.

        Raises:
            SetupError: If there is no such run, no whole checkpoint, or it does not fit.
        """
        run = Path(run)
        if run.is_dir():
            checkpoint, file = checkpoint or run, newest_config(run)
            if file is None:
                raise SetupError(
                    f"run: there is no config of a run in '{run}'; give the work dir of a run"
                )
            run = file
        if checkpoint is None:
            raise SetupError(f"checkpoint: give one for the config '{run}', or give its work dir")
        config = configs.load_config(run)
        declared = config.get('model', {}).get('input_size') or config.get('input_size')
        config = cli.student_config(config)
        init_default_scope(config.get('default_scope', 'mmpretrain'))
        with cli.mistakes_named(config):
            model = MODELS.build(config.model).eval()
        meta = load_weights(model, checkpoint, 'checkpoint').get('meta', {})
        pipeline = _pipeline(config)
        step = next((step for step in pipeline if step['type'].endswith('Normalize')), None)
        given = (step['mean'], step['std']) if step else normalisation(model.data_preprocessor)
        if given is None:  # the model takes pixels from 0 to 255
            channels = next(p.shape[1] for p in model.parameters() if p.ndim == 4)
            given = [0.0] * channels, [1.0] * channels
        mean, std = given
        own = getattr(model.data_preprocessor, 'to_rgb', False)
        to_rgb = step.get('to_rgb', True) if step else own
        size = declared or _final_size(pipeline) or built_for(model)
        size = size or _final_size(_pipeline(config, 'train_dataloader'))
        return cls(
            model,
            config,
            {key: meta[key] for key in ('dataset_meta', 'epoch', 'iter') if key in meta},
            (size, size) if isinstance(size, int) else size and tuple(size),
            [value / 255 for value in mean],
            [value / 255 for value in std],
            # files are read as BGR, data sets in memory are RGB
            len(mean) == 3 and _reads_files(pipeline) != bool(to_rgb),
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict, in the names of the library that the student is from."""
        return {key: value.contiguous() for key, value in self.model.state_dict().items()}

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of the logits; empty where the data set gave none."""
        return [*map(str, self.meta.get('dataset_meta', {}).get('classes') or ())]

    def images(self, count: int) -> Tensor:
        """Return normalised images of noise, to compare logits with."""
        if self.size is None:
            raise SetupError(
                'input_size: the config does not say how large the images are; add '
                'input_size=224 to it'
            )
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, len(self.mean), *self.size, generator=generator)

    def described(self) -> dict[str, Any]:
        """Return what a file of a runtime says about the images and classes."""
        order = 'BGR' if self.bgr else 'RGB' if len(self.mean) == 3 else 'grey'
        return dict(
            input_size=self.size,
            mean=self.mean,
            std=self.std,
            channels=order,
            classes=self.classes,
        )


class _Logits(nn.Module):
    """A classifier as a function of normalised images alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, mode='tensor')


def to_file(student: Student, out: Path) -> str:
    """Write the weights: ``.pth`` as mmengine has it, or ``.safetensors``."""
    if out.suffix == '.safetensors':
        data = safetensors.torch.save(student.weights)
    elif out.suffix == '.pth':
        buffer = io.BytesIO()
        torch.save({'state_dict': student.weights, 'meta': student.meta}, buffer)
        data = buffer.getvalue()
    else:
        raise SetupError(f"out: '{out}' must end in .pth or .safetensors")
    write_whole(data, out)
    return f'{len(student.weights)} tensors'


def to_folder(student: Student, out: Path) -> str:
    """Write a folder that the library of the student loads, without this package.

    For a timm student ``timm.create_model('local-dir:OUT', pretrained=True)``, for one of
    Hugging Face ``AutoModelForImageClassification.from_pretrained('OUT')``, for one of mmpretrain
    ``ImageClassificationInferencer('OUT/config.py')``.

    It is loaded first, and is there only if the logits are those of the student.

    Raises:
        SetupError: If the student is of no such library, or the folder is in use.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SetupError(f"out: '{out}' is there already; give a new or an empty folder")
    inner = getattr(student.model, 'model', None)
    if student.bgr and inner is not None:
        raise SetupError(
            '--to folder: the student was trained on BGR images (to_rgb=False), and its library '
            'gives RGB; use --to onnx, --to pt2, or a .pth file, and swap the channels yourself'
        )
    if hasattr(inner, 'pretrained_cfg'):
        write = _write_timm
    elif hasattr(inner, 'save_pretrained'):
        write = _write_hugging_face
    else:
        write = _write_mmpretrain
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}.') as folder:
        whole = Path(folder) / 'whole'  # the other folder is private to its owner
        whole.mkdir()
        how, load = write(student, whole)
        _compare(student, load(whole), 'folder')
        if out.exists():
            out.rmdir()
        shutil.move(whole, out)
    return how.format(out=out)


def _write_timm(student: Student, folder: Path) -> tuple[str, Callable]:
    from timm.models import _hub as hub  # where timm keeps what it uploads with

    model, given = student.model.model, student.config.model
    own = inspect.signature(type(student.model)).parameters
    arguments = {key: value for key, value in given.items() if key not in {*own, 'type'}}
    if given.get('img_size') and 'img_size' in inspect.signature(type(model)).parameters:
        arguments['img_size'] = given['img_size']
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        'num_classes': model.num_classes,
        'input_size': tuple(student.images(1).shape[1:]),
        'mean': tuple(student.mean),
        'std': tuple(student.std),
        **_resizing(_pipeline(student.config)),
    }
    described = {'label_names': student.classes} if student.classes else {}
    hub.save_for_hf(model, folder, described, model_args=arguments or None, safe_serialization=True)
    return (
        "timm.create_model('local-dir:{out}', pretrained=True)",
        lambda path: timm.create_model(f'local-dir:{path}', pretrained=True).eval(),
    )


def _write_hugging_face(student: Student, folder: Path) -> tuple[str, Callable]:
    from transformers import AutoModelForImageClassification, ViTImageProcessor

    model = student.model.model
    if student.classes:
        model.config.id2label = dict(enumerate(student.classes))
        model.config.label2id = {name: i for i, name in enumerate(student.classes)}
    model.save_pretrained(folder)
    height, width = student.images(1).shape[2:]
    processor = ViTImageProcessor(
        size=dict(height=height, width=width),
        image_mean=student.mean,
        image_std=student.std,
        do_normalize=True,
    )
    processor.save_pretrained(folder)

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        loaded = AutoModelForImageClassification.from_pretrained(path).eval()
        return lambda images: loaded(images, **student.model._arguments).logits

    return "AutoModelForImageClassification.from_pretrained('{out}')", load


def _write_mmpretrain(student: Student, folder: Path) -> tuple[str, Callable]:
    model = student.config.model
    if 'cfg_path' in model:
        from mmengine.hub import get_config

        model = get_config(model['cfg_path']).model
    model = {key: value for key, value in model.items() if key != 'init_cfg'}
    pipeline = _pipeline(student.config)
    kinds = [(kind, MODELS.get(kind)) for kind in _types(model)]
    kinds += [(kind, TRANSFORMS.get(kind)) for step in pipeline for kind in _types(step)]
    stock = ('mmpretrain', 'mmengine', 'mmcv', 'torch')
    for kind, found in kinds:
        if found is not None and found.__module__.partition('.')[0] not in stock:
            raise SetupError(
                f'--to folder: {kind} is not of mmpretrain, timm or Hugging Face, which are to '
                'load the student; use --to onnx, --to pt2, or a .pth file'
            )
    # the inferencer reads files, as BGR, of any size
    rgb = len(student.mean) == 3 and not student.bgr
    model['data_preprocessor'] = {**(model.get('data_preprocessor') or {}), 'to_rgb': rgb}
    resized = any(step['type'].startswith(('Resize', 'CenterCrop')) for step in pipeline)
    if student.size and not resized:
        resize = dict(type='Resize', scale=student.size[::-1])
        pipeline.insert(1 if _reads_files(pipeline) else 0, resize)
    config = Config(
        dict(
            model=model,
            test_dataloader=dict(dataset=dict(type='mmpretrain.CustomDataset', pipeline=pipeline)),
            load_from='{{ fileDirname }}/student.pth',
        )
    )
    config.dump(folder / 'config.py')
    to_file(student, folder / 'student.pth')

    def load(path: Path) -> Callable[[Tensor], Tensor]:
        loaded = get_model(str(path / 'config.py'), pretrained=True)
        return lambda images: loaded(images, mode='tensor')

    return "mmpretrain.ImageClassificationInferencer('{out}/config.py')", load


def to_onnx(student: Student, out: Path) -> str:
    """Write an ONNX model of ``images`` (N, C, H, W), normalised, to ``logits``; N is free.

    Its metadata hold the size, mean and std of the images and the names of the classes. It is
    run in onnxruntime first, and written only if the logits are those of PyTorch.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise SetupError(
            "--to onnx needs onnx and onnxruntime: pip install 'mmkd_tas[onnx]'"
        ) from error
    # the exporter that needs no other package, where there are two
    chosen = inspect.signature(torch.onnx.export).parameters.keys() & {'dynamo'}
    images, buffer = student.images(2), io.BytesIO()
    with _one_sentence('onnx'):
        torch.onnx.export(
            _Logits(student.model).eval(),
            (images,),
            buffer,
            input_names=['images'],
            output_names=['logits'],
            dynamic_axes={'images': {0: 'batch'}, 'logits': {0: 'batch'}},
            opset_version=_OPSET,
            **dict.fromkeys(chosen, False),
        )
    model = onnx.load_from_string(buffer.getvalue())
    described = {key: json.dumps(value) for key, value in student.described().items()}
    onnx.helper.set_model_props(model, described)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
    _compare(student, lambda images: session.run(None, {'images': images.numpy()})[0], 'onnx')
    write_whole(data, out)
    return f'opset {_OPSET}, equal in onnxruntime {onnxruntime.__version__}'


def to_pt2(student: Student, out: Path) -> str:
    """Write a program of ``torch.export``, compared and described as in :func:`to_onnx`.

    ``torch.export.load(out, extra_files=(files := {'meta.json': ''}))`` gives it back.
    """
    if not hasattr(torch, 'export') or not hasattr(torch.export, 'Dim'):
        raise SetupError(f'--to pt2 needs PyTorch 2.2 or newer, this is {torch.__version__}')
    batch = torch.export.Dim('batch', min=1, max=65536)
    images = student.images(2)
    with _one_sentence('pt2'):
        program = torch.export.export(
            _Logits(student.model).eval(), (images,), dynamic_shapes=({0: batch},)
        )
    buffer = io.BytesIO()
    files = {'meta.json': json.dumps(student.described())}
    torch.export.save(program, buffer, extra_files=files)
    buffer.seek(0)
    _compare(student, torch.export.load(buffer).module(), 'pt2')
    write_whole(buffer.getvalue(), out)
    return f'a program of torch {torch.__version__}'


@contextlib.contextmanager
def _one_sentence(kind: str) -> Iterator[None]:
    """Tell why PyTorch cannot turn a model into a graph."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporter, about its own future
        with told('export', form=kind, version=torch.__version__):
            yield


def _compare(student: Student, run: Callable[[Tensor], Any], kind: str) -> None:
    for count in (1, 3):  # none of which it was traced with
        images = student.images(count)
        with torch.no_grad():
            expected, found = student.model(images, mode='tensor'), torch.as_tensor(run(images))
        if found.shape != expected.shape or not torch.allclose(
            found, expected, rtol=_TOLERANCE, atol=_TOLERANCE
        ):
            raise SetupError(
                f'--to {kind}: for {count} images the exported model gives other logits than '
                'PyTorch; nothing was written. Use --to folder or a .pth file'
            )


def _pipeline(config: Config, *names: str) -> list[dict]:
    for name in names or ('test_dataloader', 'val_dataloader'):
        dataset = (config.get(name) or {}).get('dataset') or {}
        while 'pipeline' not in dataset and 'dataset' in dataset:  # wrapped
            dataset = dataset['dataset']
        if 'pipeline' in dataset:
            return [dict(step) for step in dataset['pipeline']]
    return []


def _reads_files(pipeline: list[dict]) -> bool:
    return any('LoadImage' in step['type'] for step in pipeline)


def _final_size(pipeline: list[dict]) -> Any:
    """Return the size of the images that a pipeline ends with, if it says so."""
    sizes = (step.get('crop_size') or step.get('scale') for step in reversed(pipeline))
    return next(filter(None, sizes), None)


def _resizing(pipeline: list[dict]) -> dict[str, Any]:
    """Return how test images are resized and cropped, in timm's words."""
    if not pipeline:
        return {}
    resize = next((step for step in pipeline if step['type'].startswith('Resize')), {})
    crop = next((step['crop_size'] for step in pipeline if step['type'] == 'CenterCrop'), None)
    edge = resize.get('scale')
    return dict(
        crop_pct=crop / edge if isinstance(crop, int) and isinstance(edge, int) else 1.0,
        crop_mode='center' if isinstance(edge, int | None) else 'squash',
        **{key: resize[key] for key in ('interpolation',) if key in resize},
    )


def _types(config: dict) -> list[str]:
    kinds = (part.get('type') for _, part in cli.dicts(config))
    return [kind for kind in kinds if isinstance(kind, str)]


FORMATS: dict[str, tuple[str, Callable[[Student, Path], str]]] = {
    'file': ('student.pth', to_file),
    'folder': ('student', to_folder),
    'onnx': ('student.onnx', to_onnx),
    'pt2': ('student.pt2', to_pt2),
}
