"""Reading checkpoints: safely, strictly, and from whichever library wrote them."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local
from safetensors.torch import load_file
from torch import Tensor, nn

from .compat import apply
from .errors import SetupError
from .explain import told
from .layouts import adapted, layout_of

# Where mmengine, timm and others keep the weights; averaged ones first, as timm itself does.
_WEIGHT_KEYS = (
    *('state_dict_ema', 'model_ema', 'ema_model', 'ema', 'params_ema'),
    *('state_dict', 'model_state_dict', 'model', 'module', 'params', 'net'),
)
# What Hugging Face and timm call the weights in a folder.
PUBLISHED = ('model.safetensors', 'pytorch_model.bin')
# What wrappers put in front of a model's own keys: DDP, this package's
# algorithm, and mmpretrain's TimmClassifier, alone or nested. Others are looked for.
_PREFIXES = ('', 'module.', 'architecture.', 'architecture.model.', 'model.', 'module.model.')
# Of a schedule's state, what is no setting.
_PROGRESS = ('optimizer', 'last_step', 'base_values', 'param_name', 'verbose')


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint onto the CPU without running any code in it.

    Args:
        path: A file of ``torch.save`` or safetensors, or any address that
            mmengine loads from (``https://...``, ``torchvision://...``).

    Raises:
        SetupError: If there is no such file, it is not whole, it contains
            anything but weights and plain data, or it cannot be downloaded.
    """
    apply()
    if '://' not in str(path) and not Path(path).expanduser().is_file():
        raise SetupError(f"there is no checkpoint file at '{path}'")
    with told('checkpoint', path=path):
        if Path(path).suffix == '.safetensors':
            return load_file(Path(path).expanduser())
        checkpoint = CheckpointLoader.load_checkpoint(str(path), 'cpu', logger='silent')
    if not isinstance(checkpoint, dict):
        raise SetupError(f"'{path}' holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def load_weights(model: nn.Module, path: str | Path, what: str, classes: int | None = None) -> dict:
    """Load a checkpoint into a model; every key and shape must fit.

    Accepts files of mmengine, timm and plain state dicts, and the checkpoint of
    a distillation run, of which it takes the student.

    Args:
        model: Receives the weights.
        path: See :func:`read_checkpoint`; or the work dir of a run, whose newest
            checkpoint is meant, or a folder that Hugging Face or timm have written.
        what: Names the setting in the error, e.g. ``'teacher_ckpt'``.
        classes: Of the model, whose head stays as it is where that of the checkpoint is for
            another number or missing; without, it has to fit as everything else. 0 for a
            model without a head, for which that of the checkpoint is left out.

    Returns:
        The whole checkpoint.

    Raises:
        SetupError: If keys are missing, unexpected or of another shape; the
            message lists them.
    """
    if Path(path).is_dir():
        folder = Path(path)
        if published := next((folder / f for f in PUBLISHED if (folder / f).is_file()), None):
            path, checkpoint = published, read_checkpoint(published)
        elif found := newest_checkpoint(folder):
            path, checkpoint = found
        else:
            raise SetupError(f"{what}: there is no whole checkpoint in '{folder}'")
    else:
        checkpoint = read_checkpoint(path)
    found = _unwrapped(checkpoint)
    if not any(isinstance(v, Tensor) for v in found.values()):
        raise SetupError(f"{what}: '{path}' holds no state_dict")
    expected = model.state_dict()
    weights = _without_prefix(found, expected, path, what)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError:
        weights, notes = adapted(model, weights)
        if classes is not None:
            weights, new = with_new_head(expected, weights, classes)
            notes += new
        try:
            model.load_state_dict(weights, strict=True)
        except RuntimeError:
            check_fit(expected, weights, path, what)
            raise
        print_log(f"{what}: '{path}': {'; '.join(notes)}", 'current')
    return checkpoint


def with_new_head(expected: dict, weights: dict, classes: int) -> tuple[dict, list[str]]:
    """Give weights the model's own head, if theirs is for another number of classes or missing.

    Args:
        expected: State dict of the model.
        weights: Of a checkpoint, under the same names.
        classes: Of the model; 0 for one without a head, for which theirs is left out.

    Returns:
        The weights, and what there is to say about it.
    """
    missing = [key for key in expected if key not in weights]
    spare = [key for key in weights if key not in expected]
    if classes == 0:
        if missing or not _is_head([weights[key] for key in spare]):
            return weights, []
        kept = {key: weights[key] for key in expected}
        return kept, [f'the model has no head, and that of the file ({_listed(spare)}) is left out']
    head = {key: expected[key] for key in missing if expected[key].shape[:1] == (classes,)}
    if head and len(head) == len(missing) and not spare and _is_head([*head.values()]):
        return {**weights, **head}, [f'it has no head; that of the model ({_listed(head)}) is new']
    head = {
        key: value
        for key, value in expected.items()
        if key in weights
        and value.shape != weights[key].shape
        and value.shape[:1] == (classes,)
        and value.shape[1:] == weights[key].shape[1:]
    }
    counts = {len(weights[key]) for key in head}
    if len(counts) != 1:
        return weights, []
    return {**weights, **head}, [
        f'it was trained for {counts.pop()} classes; the head for {classes} ({_listed(head)}) '
        'is newly initialised'
    ]


def _is_head(values: list[Tensor]) -> bool:
    """Whether weights are those of linear layers for one number of classes, with biases."""
    shapes = [tuple(value.shape) for value in values]
    return (
        len({shape[:1] for shape in shapes}) == 1
        and all(len(shape) in (1, 2) for shape in shapes)
        and any(len(shape) == 2 for shape in shapes)
    )


def _unwrapped(checkpoint: dict) -> dict:
    """Return the innermost dict of weights in a checkpoint."""
    inner = [checkpoint[key] for key in _WEIGHT_KEYS if isinstance(checkpoint.get(key), dict)]
    return _unwrapped(inner[0]) if inner and inner[0] else checkpoint


def _without_prefix(found: dict, expected: dict, path: str | Path, what: str) -> dict:
    """Return the weights whose names fit best to those of a model, without what is in front."""
    anchors = [*expected][:2] + [*expected][-4:]
    others = {
        key[: -len(anchor)]: None for anchor in anchors for key in found if key.endswith(anchor)
    }
    prefixes = dict.fromkeys([*_PREFIXES, *(p for p in others if p.endswith('.'))])
    candidates = {
        prefix: {k[len(prefix) :]: v for k, v in found.items() if k.startswith(prefix)}
        for prefix in prefixes
    }
    fit = {p: len(expected.keys() & weights.keys()) for p, weights in candidates.items()}
    best = max(fit, key=fit.get)
    if not fit[best]:
        return next(_as_backbone(candidates.values(), expected.keys()), candidates[best])
    equal = [p for p in fit if p not in _PREFIXES and fit[p] == fit[best]]
    if best not in _PREFIXES and len(equal) > 1:
        raise SetupError(
            f"{what}: '{path}' holds several such models, {' and '.join(equal)}; save the "
            'state_dict of the right one alone'
        )
    return candidates[best]


def _as_backbone(candidates: Iterable[dict], expected: Collection[str]) -> Iterator[dict]:
    """Give the weights of a backbone alone the names that they have in the whole model."""
    for weights in filter(None, candidates):
        first = next(iter(weights))
        for key in expected:
            if key.endswith(f'.{first}'):
                front = key.removesuffix(first)
                named = {f'{front}{name}': value for name, value in weights.items()}
                if named.keys() <= expected:
                    yield named


def check_fit(expected: dict, weights: dict, path: str | Path, what: str) -> None:
    """Compare the keys and shapes of two state dicts.

    Raises:
        SetupError: With the missing, unexpected and misshapen keys, if there are any.
    """
    shapes = {
        key: (tuple(weights[key].shape), tuple(value.shape))
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    }
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    counts = {(theirs[0], ours[0]) for theirs, ours in shapes.values() if theirs and ours}
    if not (shapes or missing or unexpected):
        return
    if not missing and not unexpected and len(counts) == 1:
        theirs, ours = counts.pop()
        if all(a[1:] == b[1:] for a, b in shapes.values()):
            raise SetupError(
                f"{what}: '{path}' was trained for {theirs} classes and the model's head has "
                f'{ours} (keys {_listed(shapes)}); set num_classes={theirs} in the head, or give '
                f'a checkpoint for {ours} classes'
            )
    parts = [
        f'{len(keys)} {name}: {_listed(keys)}'
        for name, keys in [
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', [f'{k} ({a}, model {b})' for k, (a, b) in shapes.items()]),
        ]
        if keys
    ]
    theirs, ours = layout_of(weights), layout_of(expected)
    hint = ''
    if theirs is not None and theirs != ours:
        hint = f'. Its names are those of {theirs} models' + (
            f', and the model has those of {ours}' if ours else ''
        )
    raise SetupError(
        f"{what}: '{path}' is of another architecture than the model; of {len(expected)} keys "
        + '; '.join(parts)
        + hint
    )


def overridden(runner: Runner, checkpoint: dict) -> list[str]:
    """Return what of the config gives way to a checkpoint that a run resumes from.

    mmengine takes from it every setting of the optimizer and of the schedules, and the seed.

    Args:
        runner: Has built optimizer and schedules from the config, and loaded neither.
        checkpoint: Of mmengine.

    Raises:
        SetupError: If its optimizer is of another kind, or groups the weights otherwise.
    """
    found = {}
    saved = checkpoint.get('optimizer')
    if saved is not None:
        wrapper = runner.optim_wrapper
        several = isinstance(wrapper, OptimWrapperDict)
        for name, own in wrapper.items() if several else [('', wrapper)]:
            path = '.'.join(filter(None, ['optim_wrapper', name, 'optimizer']))
            theirs = (saved[name] if name else saved)['param_groups']
            _check_groups(path, own.optimizer.param_groups, theirs)
            for ours, other in zip(own.optimizer.param_groups, theirs, strict=True):
                # What a schedule moves has the value it starts from beside it.
                moved = {key.removeprefix('initial_') for key in ours if key.startswith('initial_')}
                for key in ours.keys() & other.keys() - moved - {'params'}:
                    values = other[key], ours[key]
                    if _plain(values[0]) != _plain(values[1]):  # in the first such group
                        found.setdefault(f'{path}.{key.removeprefix("initial_")}', values)
    schedules, saved = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
    for name in schedules if isinstance(schedules, dict) else ['']:
        own, theirs = (schedules[name], saved[name]) if name else (schedules, saved)
        path = '.'.join(filter(None, ['param_scheduler', name]))
        found[f'the number of schedules ({path})'] = len(theirs), len(own)
        for i, (ours, other) in enumerate(zip(own, theirs, strict=False)):
            here = f'{path}.{i}' if len(own) > 1 else path
            for key, value in vars(ours).items():
                if key in other and key[0] != '_' and key not in _PROGRESS:
                    found[f'{here}.{key}'] = other[key], value
    seed = runner._randomness_cfg.get('seed')
    if seed is not None:
        found['randomness.seed'] = checkpoint['meta'].get('seed', seed), seed
    return [
        f'{key} {_plain(theirs)} (config: {_plain(ours)})'
        for key, (theirs, ours) in sorted(found.items())
        if _plain(theirs) != _plain(ours)
    ]


def _check_groups(path: str, ours: list[dict], theirs: list[dict]) -> None:
    sizes, others = ([len(group['params']) for group in groups] for groups in (ours, theirs))
    if sizes != others:
        raise SetupError(
            f'resume: the checkpoint has {sum(others)} weights in {len(others)} groups of the '
            f'optimizer, and the config makes {sum(sizes)} in {len(sizes)}: put '
            'optim_wrapper.paramwise_cfg back as it was, or start a new run from its weights, with '
            'load_from=... instead of resuming'
        )
    # Flags are what versions of PyTorch differ in.
    lacking = [
        key
        for key, value in ours[0].items()
        if key not in theirs[0] and isinstance(value, float | tuple) and '_' not in key
    ]
    if lacking:
        raise SetupError(
            f'{path}: the checkpoint to resume from is of another optimizer, without '
            f'{" and ".join(lacking)}: put the type back as it was, or start a new run from its '
            'weights, with load_from=... instead of resuming'
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _listed(keys: Iterable[str], most: int = 6) -> str:
    keys = list(keys)
    return ', '.join(keys[:most]) + (f' and {len(keys) - most} more' * (len(keys) > most))


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights: names, types, shapes and every byte.

    It takes about 0.4 s for 100 M parameters on a CPU.
    """
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f'{key} {value.dtype} {tuple(value.shape)}'.encode())
            values = value.detach().cpu().contiguous().view(-1)
            digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def hand_over(path: str | Path, checkpoint: dict) -> None:
    """Let mmengine have a checkpoint that was read, instead of reading the file once more.

    It holds for the next time that mmengine reads that file.
    """
    held = [checkpoint]

    def load_from_memory(filename: str, map_location: Any) -> dict:
        return held.pop() if held else load_from_local(filename, map_location)

    if Path(path).suffix != '.safetensors' and '://' not in str(path):
        CheckpointLoader.register_scheme(f'{re.escape(str(path))}$', load_from_memory, force=True)


def find_checkpoint(work_dir: str | Path) -> Path | None:
    """Return the newest whole checkpoint of a run, see :func:`newest_checkpoint`."""
    found = newest_checkpoint(work_dir)
    return found and found[0]


def newest_checkpoint(work_dir: str | Path) -> tuple[Path, dict] | None:
    """Return the newest whole checkpoint of a run and what is in it, None if there is none.

    The file that ``last_checkpoint`` names comes first, then the others from
    the latest to the earliest; a broken one is passed over with a warning.
    """
    work_dir = Path(work_dir)
    files = sorted(
        [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')],
        key=lambda file: int(re.sub(r'\D', '', file.stem)),
        reverse=True,
    )
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file() and (last := Path(pointer.read_text().strip())).name:
        # The folder may have been moved since.
        files.insert(0, last if last.is_file() else work_dir / last.name)
    for file in dict.fromkeys(files):
        try:
            return file, read_checkpoint(file)
        except SetupError as error:
            print_log(f'passing over a checkpoint: {error}', 'current', level=30)
    return None
