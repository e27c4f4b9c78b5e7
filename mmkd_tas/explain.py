"""What errors of other libraries mean: one sentence for the user, who can fix the cause.

Each :class:`Rule` says whose error it knows, in which release, and which test shows it.
:func:`told` applies those of one topic to a call of such a library, :func:`explain` to whatever
ends a run. An error that no rule knows keeps its traceback.
"""

import contextlib
import difflib
import errno
import functools
import importlib
import importlib.util
import inspect
import pickle
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from urllib.error import URLError

import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from mmengine.config import Config
from mmengine.registry import Registry, build_from_cfg
from mmengine.runner import BaseLoop
from safetensors import SafetensorError

from .errors import SetupError, suggest

# Where a mistake in the config may show; what passes through other code is the user's own.
_PACKAGES = ('mmengine', 'mmcv', 'mmpretrain', 'mmrazor', 'mmkd_tas', 'timm', 'torch')
_PACKAGES += ('torchvision', 'huggingface_hub', 'numpy', 'PIL', 'cv2')
_BUILD = build_from_cfg.__code__
_HUB = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
_NOT_FOUND = (AssertionError, FileNotFoundError, ImportError, ValueError)
_UNREADABLE = (EOFError, KeyError, OSError, RuntimeError, ValueError)
_UNREADABLE += (SafetensorError, pickle.UnpicklingError)


class Rule(NamedTuple):
    """What is said about an error of another library."""

    source: str  # the library, and the release that it was last seen in
    test: str  # that shows it
    kinds: type | tuple[type, ...]
    pattern: str  # a regular expression for its text; with `at`, words of it
    # With {0} for the groups of the pattern, {error}, its {kind} and {text}, and what the caller
    # of told() knows; or a function of the error, the groups and that, which may return None.
    sentence: str | Callable[..., str | None]
    at: str = ''  # part of the name of a file that its traceback passes through

    def apply(self, error: Exception, files: list[str] | None = None, **known: Any) -> str | None:
        """Return the sentence, or None if the rule is about other errors."""
        text, found = _line(error), ()
        if not isinstance(error, self.kinds) or not any(self.at in f for f in files or ['']):
            return None
        if self.pattern and not self.at:
            found = re.search(self.pattern, text)
            found = found and found.groups()
        if found is None or (self.at and self.pattern not in text):
            return None
        if callable(self.sentence):
            return self.sentence(error, *found, **known)
        kind = type(error).__name__
        return self.sentence.format(*found, error=error, kind=kind, text=text, **known)


def _line(error: BaseException) -> str:
    return ' '.join(str(error).split())


def _no_room(error: OSError) -> str | None:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    what = 'a file' if error.filename is None else f"'{error.filename}'"
    return (
        f'{what} cannot be written ({error.strerror}): make room; a run then continues from its '
        'last checkpoint with --resume'
    )


def _file(error: OSError) -> str | None:
    """Tell which file is at fault, unless code of the user has opened it."""
    if not all(map(_familiar, _files(error))):
        return None
    if error.filename is not None and error.strerror:
        return f"'{error.filename}': {error.strerror}"
    _, _, text = _line(error).rpartition('[Errno ')  # a worker sends the text alone
    what, colon, path = text.partition('] ')[2].rpartition(': ')
    return f'{path}: {what}' if colon else None


def _no_config(error: Exception, name: str) -> str:
    """Tell what ``PACKAGE::NAME`` could have been."""
    package, _, file = name.partition('::')
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        return (
            f"there is no config '{name}', because there is no package '{package}': write "
            'mmkd_tas::NAME, mmpretrain::NAME or the path of a file'
        )
    folder = Path(spec.origin).parent / '.mim/configs'
    known = [str(path.relative_to(folder)) for path in sorted(folder.glob('**/*.py'))]
    hint = suggest(file, known) if known else f': no configs are installed with {package}'
    return f"there is no config '{name}'{hint}"


_WORKER_DIED = (
    'a worker process of a data loader has died ({text}), most often because memory has run out '
    "(with 'Bus error', shared memory: /dev/shm): lower num_workers of the loaders or make room, "
    'then continue from the last checkpoint with --resume'
)
RULES = {
    # At any time. No regular expression looks at these, but where they are raised.
    'run': [
        Rule('Python 3', 'test_a_full_disk', OSError, '', _no_room),
        Rule('torch 2.15.0', 'test_a_killed_worker_is_told', RuntimeError,
             'DataLoader worker (pid', _WORKER_DIED, at='torch/utils/data/'),
        Rule('torch 2.15.0', 'test_a_worker_that_is_gone_while_its_images_are_fetched',
             (OSError, EOFError), '', _WORKER_DIED, at='torch/multiprocessing/reductions.py'),
        Rule('torch 2.15.0', 'test_a_batch_of_one_image_in_a_batch_norm', ValueError,
             'Expected more than 1 value per channel when training',
             'train_dataloader: a BatchNorm layer takes its statistics over a batch, and got one '
             'with a single value per channel ({text}): choose a batch_size that leaves no last '
             'batch of one image, or set drop_last=True', at='torch/nn/functional.py'),
        Rule('Python 3', 'test_an_image_that_went_missing_is_told_and_the_traceback_kept',
             OSError, '', _file),
    ],
    'building': [
        Rule('Python 3', 'test_what_is_told_while_building', URLError, '',
             'a download failed ({error.reason}): put the files in place beforehand'),
        Rule('huggingface_hub 2.4.0', 'test_what_is_told_while_building', _HUB, '',
             'the weights that pretrained=True asks for are not in the cache, and the hub cannot '
             'be reached: set pretrained=False and give a local file (--teacher-ckpt, '
             'model.teacher_ckpt, load_from)'),
        Rule('mmengine 0.10.7', 'test_a_package_of_a_backend_that_is_not_there', ImportError, '',
             'visualizer.vis_backends: one of them needs a package that cannot be imported '
             '({text}): install it, or leave the backend out', at='vis_backend.py'),
        Rule('Python 3', 'test_what_is_told_while_building', ImportError, '',
             'a package that is needed cannot be imported: {text}'),
        Rule('mmpretrain 1.2.0', 'test_absent_or_empty_data_folder', RuntimeError,
             r"Found 0 files in subfolders of: {'img_path': '(.*?)'}",
             "there are no images in the sub-folders of '{0}': one folder per class"),
        Rule('mmpretrain 1.2.0', 'test_on_the_command_line', RuntimeError,
             r'Cannot find (\w+) dataset in (\S+?)/?,',
             "the data set {0} is missing or incomplete in '{1}': unpack its official archive "
             'there, set dataset.data_root of the loaders to where it is, or let '
             'dataset.download=True fetch it'),
        Rule('timm 1.0.31', 'test_what_is_told_while_building', RuntimeError,
             r'Unknown model \((.*)\)', lambda error, name:
             f"timm has no model '{name}'{suggest(name, timm.list_models())}"),
        Rule('mmengine 0.10.7', 'test_on_the_command_line', ValueError,
             'end should be larger than begin',
             'param_scheduler: a part of the schedule would begin after the training has ended: '
             'shorten the warm-up (begin=, end=) or raise train_cfg.max_epochs'),
        Rule('torch 2.15.0', 'test_sync_bn_without_a_gpu_is_refused', ValueError,
             'SyncBatchNorm layers only work with GPU modules',
             'sync_bn: BatchNorm over several processes needs GPUs; leave the key out on CPUs'),
    ],
    'batch of one': [
        Rule('torch 2.15.0', 'test_a_batch_of_one_image_that_batch_norm_would_refuse', ValueError,
             'Expected more than 1 value per channel',
             'train_dataloader: {images} images in batches of {size} leave one of a single image, '
             'from which a BatchNorm layer cannot take its statistics: set drop_last=True, or '
             'choose another batch_size'),
    ],
    'checkpoint': [
        Rule('Python 3', 'test_unreadable_files', URLError, '',
             "the checkpoint '{path}' cannot be downloaded ({error.reason}): give the path of a "
             'local file instead'),
        Rule('torch 2.15.0', 'test_bad_teacher_checkpoints', pickle.UnpicklingError,
             r'GLOBAL ([\w.]+)',
             "the checkpoint '{path}' is refused: it wants to call '{0}', and a checkpoint may "
             'hold only weights and plain data; if you trust the file, save its state_dict alone'),
        Rule('torch 2.15.0, safetensors 0.8.0', 'test_unreadable_files', _UNREADABLE, '',
             "'{path}' is not a whole checkpoint: it is cut short or in another format"),
    ],
    'config': [
        Rule('mmengine 0.10.7', 'test_bad_input', Exception, '',
             "the config '{path}' fails: {kind}: {text}"),
    ],
    'config of a package': [
        Rule('mmengine 0.10.7', 'test_a_config_that_no_package_has', _NOT_FOUND, '',
             _no_config),
    ],
    'model': [
        Rule('timm 1.0.31', 'test_mistakes', TypeError, r"unexpected keyword argument '(\w+)'",
             "model: '{name}' takes no argument '{0}'"),
    ],
    'torchvision': [
        Rule('torchvision 0.29.2', 'test_mistakes', (AssertionError, KeyError, ValueError), '',
             "model: 'torchvision:{name}' cannot be built with these arguments: {text}"),
    ],
    'hf': [
        Rule('Python 3', 'test_without_transformers', ImportError, '',
             "model: 'hf:{name}' needs a package that is not installed: pip install transformers"),
        Rule('transformers 5.24.0', 'test_hugging_face_that_is_not_there', (OSError, ValueError),
             '', "model: 'hf:{name}' is neither a folder that holds a config.json nor a model of "
             'the hub, or it is not an image classifier ({text})'),
    ],
    'export': [
        Rule('torch 2.15.0', 'test_a_graph_that_is_not_the_model_is_not_written', Exception, '',
             '--to {form}: PyTorch {version} cannot export this model ({kind}: {text:.300}); use '
             '--to folder or a .pth file'),
    ],
    'CIFAR-100': [
        Rule('Python 3', 'test_broken_files', (*_UNREADABLE, TypeError), '',
             "'{path}' is not a file of CIFAR-100 ({text})"),
    ],
}  # fmt: skip


@contextlib.contextmanager
def told(topic: str, **known: Any) -> Iterator[None]:
    """Tell in one sentence what the rules of a topic know of an error.

    Raises:
        SetupError: With the sentence; other errors pass.
    """
    try:
        yield
    except Exception as error:
        for rule in [] if isinstance(error, SetupError) else RULES[topic]:
            if sentence := rule.apply(error, **known):
                raise SetupError(sentence) from error
        raise


def explain(error: Exception) -> str | None:
    """Return one sentence about a mistake in config or data, None for other errors.

    What may happen to any run is told at any time. What is a mistake in the config can be one
    only while things are built, and where the code that raises it is not the user's own.
    """
    # PyTorch tells of a dead worker wherever the program is just then, within other code's `try:`
    cause: BaseException | None = error
    while cause is not None and not _line(cause).startswith('DataLoader worker (pid'):
        cause = cause.__context__
    if isinstance(cause, Exception):
        error = cause
    text, files = _line(error), _files(error)
    if isinstance(error, SetupError):
        # of one in a data loader's worker, the text is its traceback
        return text.rpartition('SetupError: ')[2] if text.startswith('Caught ') else text
    building = files and _familiar(files[-1]) and not in_loop(error)
    rules = RULES['run'] + (RULES['building'] if building else [])
    return next(filter(None, (rule.apply(error, files) for rule in rules)), None)


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def in_loop(error: Exception) -> bool:
    """Return whether all was built, and the training or the test ran."""
    return any(
        frame.f_code.co_name == 'run' and isinstance(frame.f_locals.get('self'), BaseLoop)
        for frame in _frames(error)
    )


def _files(error: Exception) -> list[str]:
    """Return the files that a traceback passes through, in a data loader's worker, too."""
    files = [frame.f_code.co_filename for frame in _frames(error)]
    if str(error).startswith('Caught '):
        lines = map(str.strip, str(error).splitlines())
        files += [line.split('"')[1] for line in lines if line.startswith('File "')]
    return files


@functools.cache
def _familiar(file: str) -> bool:
    """Return whether a file is of Python, this project or what it is built on."""
    folders = []
    for package in _PACKAGES:
        if (spec := importlib.util.find_spec(package)) and spec.origin:
            folders.append(Path(spec.origin).parent)
    path = Path(file)
    in_python = path.is_relative_to(sysconfig.get_path('stdlib')) and not (
        {'site-packages', 'dist-packages'} & set(path.parts)
    )
    return file.startswith('<') or in_python or any(map(path.is_relative_to, folders))


@contextlib.contextmanager
def mistakes_named(config: Config) -> Iterator[None]:
    """Name the key of an unknown ``type`` or argument, when building from a config fails for it."""
    try:
        yield
    except (KeyError, RuntimeError, TypeError) as error:
        if not in_loop(error):
            nodes = dict(dicts(config.to_dict()))
            if sentence := _type_mistake(error, nodes) or _argument_mistake(error, nodes):
                raise SetupError(sentence) from error
        raise


def dicts(node: Any, path: str = '') -> Iterator[tuple[str, dict]]:
    """Yield all dicts in a config, each with the path of its key."""
    if isinstance(node, dict):
        yield path, node
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, dict | list | tuple):
            yield from dicts(value, f'{path}.{key}' if path else str(key))


def _type_mistake(error: Exception, nodes: dict[str, dict]) -> str | None:
    if not re.search(r'is not in the|Failed to get|None is not a callable', str(error)):
        return None
    for path, node in nodes.items():
        name = node.get('type')
        if isinstance(name, str) and (hint := _unknown_type(name)):
            key = f'{path}.type' if path else 'type'
            return f"{key}: unknown type '{name}'{hint}"
    return None


def _argument_mistake(error: Exception, nodes: dict[str, dict]) -> str | None:
    """Tell which dict of the config has an argument too many, or lacks one.

    A call that fails in this way is a mistake of the config only if it was made with the
    content of one of its dicts; all others are mistakes of a program.
    """
    found = re.search(
        r"(\S+)\(\) (?:got an unexpected keyword argument '(\w+)'|missing .*?: (.*)"
        r'|takes no arguments)',
        str(error),
    )
    frames = _frames(error)
    if not (isinstance(error, TypeError) and found and frames):
        return None
    # The call of mmengine's registry that led here, and what it was to build.
    at = max((i for i, f in enumerate(frames) if f.f_code is _BUILD), default=None)
    built = {} if at is None else frames[at].f_locals
    kind, cfg = built.get('obj_cls'), built.get('cfg', {})
    parts = found[1].split('.')
    name = parts[-2] if parts[-1] == '__init__' and len(parts) > 1 else parts[-1]
    lineage = [c.__name__ for c in getattr(kind, '__mro__', [kind]) if c is not None]
    of_same_type = {
        path: node for path, node in nodes.items() if cfg and node.get('type') == cfg.get('type')
    }
    if key := found[2]:
        given = any(isinstance(v, dict) and key in v for v in frames[-1].f_locals.values())
        paths = [path for path, node in nodes.items() if key in node]
        paths = [path for path in paths if path in of_same_type] or paths
        if not (given and paths):
            return None
        called = kind if name in lineage else frames[-1].f_globals.get(name)
        name = lineage[0] if name in lineage else name
        hint = suggest(key, _parameters(called))
        return f"{paths[0]}: {name} takes no argument '{key}'{hint}"
    passed_on = all(f.f_code.co_flags & inspect.CO_VARKEYWORDS for f in frames[at:][1:])
    if at is None or name not in lineage or not passed_on or not of_same_type:
        return None
    path = next(iter(of_same_type))
    if found[3]:
        return f'{path}: {lineage[0]} needs the argument {found[3]}: add it to its dict'
    given = [key for key in of_same_type[path] if key != 'type']
    return (
        f'{path}: {lineage[0]} takes no arguments: leave {", ".join(given)} out' if given else None
    )


def _parameters(called: Any) -> set[str]:
    """Return the names of a call's arguments; of a class, those of its parents, too."""
    lineage = inspect.getmro(called) if inspect.isclass(called) else ()
    names = set()
    for function in [c.__init__ for c in lineage] or [called]:
        with contextlib.suppress(TypeError, ValueError):
            names.update(inspect.signature(function).parameters)
    return names - {'self', 'args', 'kwargs'}


def _unknown_type(name: str) -> str | None:
    """Return a hint at similar names if no registry knows a type, else None."""
    known: dict[str, set[str]] = {}
    for package in ('mmengine', 'mmpretrain', 'mmrazor', 'mmkd_tas'):
        for registry in vars(importlib.import_module(f'{package}.registry')).values():
            if isinstance(registry, Registry):
                registry.import_from_location()
                for key in registry.module_dict:
                    # MMRazor's recorders and deliveries are named without their suffix
                    for alias in {key, re.sub('(Recorder|Delivery)$', '', key)}:
                        known.setdefault(alias, set()).add(f'{registry.scope}.{alias}')
    scope, _, bare = name.rpartition('.')
    if bare in known and (not scope or name in known[bare]):
        return None
    close = sorted(full for k in difflib.get_close_matches(bare, known, n=3) for full in known[k])
    return f'; did you mean {" or ".join(close)}?' if close else '; none has a similar name'
