"""Show the methods, models, data sets and configs that there are.

Examples:
  mmkd-tas list
  mmkd-tas list methods
  mmkd-tas list models 'timm:*resnet*'
"""

import argparse
import fnmatch
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from .. import configs
from ..errors import SetupError
from ..origins import known_models

_KINDS = ('methods', 'datasets', 'models', 'configs')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument('kind', nargs='?', choices=_KINDS, help='of what; by default of all')
    parser.add_argument('pattern', nargs='?', help="only names like this: 'tas*', 'timm:*vit*'")


def described(files: Iterable[Path]) -> dict[str, str]:
    """Return ``{name: comment at the top}`` of configs."""
    found = {}
    for file in files:
        lines = re.match(r'(# .*\n)*', file.read_text())[0].splitlines()
        found[file.stem] = ' '.join(line.removeprefix('# ') for line in lines)
    return found


def entries(kind: str, everything: bool) -> dict[str, str]:
    """Return ``{name: description}``; of models and configs all, or those to begin with."""
    if kind in ('methods', 'datasets'):
        return described(configs.BASES / kind / f'{name}.py' for name in configs.names_of(kind))
    if kind == 'models':
        own = described(sorted((configs.BASES / 'models').glob('*/*.py')))
        if everything:
            return {**own, **dict.fromkeys(known_models(), '')}
        count = Counter(name.partition(':')[0] for name in known_models())
        return {
            **own,
            **{f'{origin}:NAME': f'{number} models' for origin, number in count.items()},
            'hf:NAME': "an image classifier on Hugging Face's hub",
            'hf:FOLDER': 'or in a folder',
        }
    leaves = (file for file in configs.CONFIGS.glob('*/*.py') if file.parent.name != '_base_')
    return {f'mmkd_tas::{file.relative_to(configs.CONFIGS)}': '' for file in sorted(leaves)}


def main(args: argparse.Namespace) -> None:
    """Print."""
    console = Console(highlight=False)
    for kind in [args.kind] if args.kind else _KINDS:
        found = entries(kind, everything=args.pattern is not None)
        if args.pattern:
            found = {name: found[name] for name in fnmatch.filter(found, args.pattern)}
            if not found:
                raise SetupError(f"{kind}: no name is like '{args.pattern}'")
        if args.kind is None:
            console.print(f'{kind}:')
        if args.kind is None and kind == 'configs':
            console.print(f'  {len(found)}, `mmkd-tas list configs` shows them')
            continue
        width = max(map(len, found))
        for name, text in found.items():
            console.print(f'  {name:{width}}  {text}'.rstrip(), markup=False, soft_wrap=True)
