"""Models by name, from the libraries that have them."""

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torchvision.models
from torch import nn

from .errors import SetupError
from .explain import told
from .records import of_transforms


def build_named(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, int]:
    """Build a model by its name; return it and its number of classes.

    Args:
        name: ``timm:NAME``, ``torchvision:NAME``, or ``hf:`` with the name of a model on
            Hugging Face's hub or a folder.
        pretrained: Whether to load the library's weights; a head for another number of
            classes is new.
        num_classes: By default what the library says; 0 for a model without a head.
        img_size: Of the images, for models that are built for one size; pretrained ones of
            Hugging Face resize their position tables themselves.
        kwargs: Other arguments of the library's own function; of Hugging Face, settings
            of the model's config.

    Raises:
        SetupError: If there is no such model, or it cannot be built so.
    """
    origin, _, bare = name.partition(':')
    if not (is_named(name) and bare):
        raise SetupError(
            f"model: '{name}' does not begin with {', '.join(f'{o}:' for o in _ORIGINS)}, as the "
            f'name of a model has to{close_models(bare or name)}'
        )
    with told('model', name=name):
        return _ORIGINS[origin](bare, pretrained, num_classes, img_size, **kwargs)


def is_named(name: str) -> bool:
    """Return whether a name has an origin in front."""
    return name.partition(':')[0] in _ORIGINS


def known_models() -> list[str]:
    """Return the names of the models that can be listed."""
    return [
        *(f'timm:{name}' for name in timm.list_models()),
        *(f'torchvision:{name}' for name in _of_torchvision()),
    ]


def close_models(name: str, others: Iterable[str] = ()) -> str:
    """Return ``'; did you mean ...?'`` with the closest names of every origin.

    Args:
        name: What is not known.
        others: What was possible beside :func:`known_models`.
    """
    origins: dict[str, dict[str, str]] = {}
    for full in [*others, *known_models()]:
        origin, _, bare = full.rpartition(':')
        origins.setdefault(origin, {})[bare] = full
    bare = name.rpartition(':')[2]
    close = [
        names[match]
        for names in origins.values()
        for match in difflib.get_close_matches(bare, names, n=2)
    ]
    return f'; did you mean {" or ".join(map(repr, close))}?' if close else ''


def _from_timm(
    name: str, pretrained: bool, num_classes: int | None, img_size: Any, **kwargs: Any
) -> tuple[nn.Module, int]:
    if ':' not in name and not timm.is_model(name):  # hf-hub:... is looked up elsewhere
        raise SetupError(f"model: timm has no model '{name}'{close_models(name)}")
    known = None if ':' in name else timm.get_pretrained_cfg(name)
    if pretrained and ':' not in name and not (known and known.has_weights):
        raise SetupError(
            f"model: timm has no weights of '{name}'; take a model with weights "
            '(timm.list_pretrained()), or leave pretrained out and give a checkpoint'
        )
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    create = functools.partial(timm.create_model, name, pretrained, **kwargs)
    model = _built_for(create, img_size=img_size)
    return model, model.num_classes


def _from_torchvision(
    name: str, pretrained: bool, num_classes: int | None, img_size: Any, **kwargs: Any
) -> tuple[nn.Module, int]:
    if name not in _of_torchvision():
        raise SetupError(f"model: torchvision has no classifier '{name}'{close_models(name)}")
    weights = kwargs.pop('weights', 'DEFAULT' if pretrained else None)
    create = functools.partial(torchvision.models.get_model, name, **kwargs)
    pair = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
    sizes = {'image_size': img_size, 'input_size': img_size and tuple(pair)}
    with told('torchvision', name=name):
        if num_classes and not weights:
            create = functools.partial(create, num_classes=num_classes)
        model = _built_for(functools.partial(create, weights=weights), **sizes)
        if num_classes is not None and (weights or not num_classes):
            other = _built_for(functools.partial(create, num_classes=num_classes or 1), **sizes)
            _replace_heads(model, other, headless=num_classes == 0)
    declared = torchvision.models.get_model_weights(name)
    chosen = declared[str(weights or 'DEFAULT').rpartition('.')[2]]
    model.image_record = of_transforms(chosen.transforms())
    return model, 1000 if num_classes is None else num_classes  # what all of its weights have


def _replace_heads(model: nn.Module, other: nn.Module, headless: bool) -> None:
    """Take the layers whose width is the number of classes from another model, or take them out."""
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    for key, value in model.state_dict().items():
        if value.shape != shapes[key]:
            path = key.rpartition('.')[0]
            parent, _, name = path.rpartition('.')
            head = nn.Identity() if headless else other.get_submodule(path)
            setattr(model.get_submodule(parent), name, head)


def _from_hugging_face(
    name: str, pretrained: bool, num_classes: int | None, img_size: Any, **kwargs: Any
) -> tuple[nn.Module, int]:
    with told('hf', name=name):
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
    if num_classes:
        kwargs['num_labels'] = num_classes
    if img_size is not None and not pretrained:  # whose position tables are for their own size
        kwargs['image_size'] = img_size
    kind = AutoModel if num_classes == 0 else AutoModelForImageClassification
    with told('hf', name=name):
        config, rest = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **kwargs)
        rest.pop('image_size', None)  # which those that take any size do not know
        if pretrained:
            model = _pretrained_of_hugging_face(kind, name, config=config, **rest)
        else:
            model = kind.from_config(config, **rest)
    return model.float(), 0 if num_classes == 0 else config.num_labels


def _pretrained_of_hugging_face(kind: Any, name: str, **kwargs: Any) -> nn.Module:
    """Load weights; only a head may be new."""
    load = functools.partial(
        kind.from_pretrained,
        name,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **kwargs,
    )

    def new_parts(info: dict) -> set[str]:
        return {*info['missing_keys'], *(key for key, *_ in info['mismatched_keys'])}

    model, info = load()
    new = new_parts(info)
    if new and all(key.startswith('pooler.') for key in new):
        model, info = load(add_pooling_layer=False)  # its weights are not there
        new = new_parts(info)
    body = f'{model.base_model_prefix}.'
    headless = not hasattr(model, model.base_model_prefix)
    if wrong := sorted(key for key in new if headless or key.startswith(body)):
        raise SetupError(
            f"model: the weights of 'hf:{name}' do not fit the model that the config asks for: "
            f'{", ".join(wrong[:6])} would stay random; leave the changes of its config out'
        )
    return model


def _built_for(create: Callable[..., nn.Module], **sizes: Any) -> nn.Module:
    """Build a model for images of a size, under the first of the names that it takes."""
    for name, size in sizes.items():
        if size is not None:
            try:
                return create(**{name: size})
            except TypeError as error:
                if f"'{name}'" not in str(error):
                    raise
    return create()


@functools.cache
def _of_torchvision() -> tuple[str, ...]:
    return tuple(torchvision.models.list_models(torchvision.models))


_ORIGINS = {'timm': _from_timm, 'torchvision': _from_torchvision, 'hf': _from_hugging_face}
