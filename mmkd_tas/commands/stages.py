"""Show how a classifier is seen: its four stages, and what they cost.

Of a distillation config, those of the student and of the teacher.

Examples:
  mmkd-tas stages CONFIG
  mmkd-tas stages resnet18_8xb32_in1k
  mmkd-tas stages timm:vit_tiny_patch16_224 torchvision:resnet18 --input 224
  mmkd-tas stages 'timm:resnet*' hf:FOLDER
"""

import argparse
import fnmatch
import sys
from pathlib import Path

from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmpretrain import get_model
from mmpretrain.apis import list_models
from rich.console import Console
from rich.table import Table

from .. import cli, configs
from ..errors import SetupError
from ..origins import close_models, is_named, known_models
from ..stages import ModelView, describe, view_of
from ..stages.costs import costs_of

# A file or a pipe is as wide as the table.
console = Console(width=None if sys.stdout.isatty() else 120)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument(
        'model',
        nargs='+',
        help='config file, mmpretrain model, timm:NAME, torchvision:NAME, hf:NAME or hf:FOLDER; '
        'of names also patterns: timm:resnet*',
    )
    parser.add_argument('--input', metavar='PIXELS', help='side, or height x width: 224x320')
    parser.add_argument('--all', action='store_true', help='list all modules that return a feature')


def parse_size(text: str) -> tuple[int, int]:
    """Return ``(H, W)`` of ``'224'`` or ``'224x320'``."""
    sides = text.split('x')
    if not all(side.isdigit() for side in sides) or len(sides) > 2:
        raise SetupError(f"--input: '{text}' is neither a side like 224 nor a size like 224x320")
    return int(sides[0]), int(sides[-1])


def views(name: str, size: int | tuple[int, int] | None) -> dict[str, ModelView]:
    """Return the views of what a command line argument names."""
    if is_named(name):
        cfg = dict(type='mmkd_tas.Classifier', model=name, img_size=size)
        return {name: describe(MODELS.build(cfg), size)}
    if Path(name).suffix not in ('.py', '.json', '.yml', '.yaml'):
        if name not in list_models():
            close = close_models(name, list_models())
            raise SetupError(f"mmpretrain has no model '{name}'{close}")
        return {name: describe(get_model(name, pretrained=False), size)}
    config = configs.load_config(name)
    if 'model' not in config:  # a file of configs/_base_/models, which calls it by its name
        config.model = next(part for part in config.values() if 'type' in part)
        configs.set_num_classes(config.model, 1000)
    with cli.mistakes_named(config):
        if 'architecture' not in config.model:
            return {name: describe(MODELS.build(config.model), size)}
        config.model.teacher_ckpt, config.model.random_teacher = None, True
        config.model.student_ckpt = None
        if size is not None:
            config.model.input_size = size
        model = MODELS.build(config.model)
    return {
        f'student of {name}': view_of(model.student),
        f'teacher of {name}': view_of(model.teacher),
    }


def print_stages(title: str, view: ModelView) -> None:
    """Print a row per stage."""
    costs = costs_of(view)
    table = Table(
        *('stage', 'module', 'layout', 'prefix', 'channels', 'grid', 'parameters', 'FLOPs'),
        title=f'{title}, images of {view.input_size[0]} x {view.input_size[1]}',
        title_justify='left',
    )
    for column in table.columns[3:]:
        column.justify = 'right'
    for number, (stage, cost) in enumerate(zip(view.stages, costs, strict=False), 1):
        grid = f'{stage.grid[0]} x {stage.grid[1]}'
        facts = (stage.module, stage.layout, str(stage.prefix), str(stage.channels), grid)
        table.add_row(str(number), *facts, f'{cost.parameters:,}', f'{cost.share:.1%}')
    last = costs[-1]
    rest = f'{", ".join(view.classifiers)}: {view.width} -> {view.num_classes}'
    table.add_row('rest', rest, '', '', '', '', f'{last.parameters:,}', f'{last.share:.1%}')
    console.print(table)
    flops = sum(cost.flops for cost in costs)
    parameters = sum(cost.parameters for cost in costs)
    console.print(f'{parameters:,} parameters, {flops / 1e9:.2f} GFLOPs per image\n')


def print_modules(title: str, view: ModelView) -> None:
    """Print the modules that `stages=[...]` may name."""
    table = Table('module', 'output for one image', title=title, title_justify='left')
    for path, shape in view.features():
        table.add_row(path, ' x '.join(map(str, shape)))
    console.print(table)


def expanded(names: list[str]) -> list[str]:
    """Replace patterns, as ``timm:resnet*``, by the names that they match."""
    found = []
    for name in names:
        wild = set('*?') & set(name) and not Path(name).exists()
        matches = fnmatch.filter([*known_models(), *list_models()], name) if wild else [name]
        if not matches:
            raise SetupError(f"no model has a name like '{name}'")
        found += matches
    return found


def main(args: argparse.Namespace) -> None:
    """Print."""
    MMLogger.get_instance('print_stages', log_level='ERROR')
    init_default_scope('mmpretrain')
    size = parse_size(args.input) if args.input else None
    names, failed = expanded(args.model), 0
    for name in names:
        try:
            for title, view in views(name, size).items():
                (print_modules if args.all else print_stages)(title, view)
        except SetupError as error:
            if names == args.model:
                raise
            failed += 1
            console.print(f'{name}: {error}\n', markup=False)
    if names != args.model:
        console.print(f'{len(names)} models: {len(names) - failed} with four stages, {failed} not')
