"""The command ``mmkd-tas``.

Each of its parts is a module of this package, with ``add_arguments(parser)`` and
``main(args)``; ``tools/*.py`` call the same.
"""

import argparse
import importlib
import sys
from pathlib import Path

from .. import __version__, cli
from ..errors import SetupError, suggest

PARTS = {
    'train': 'train a model, with or without a teacher',
    'test': 'evaluate a model, or the student of a distillation',
    'export': 'save the student of a run for use without this package',
    'stages': 'show how a classifier is split into stages, and what they cost',
    'analyze': 'show why a student got better',
    'compare': 'print a table of trainings, and plot them',
    'list': 'show the methods, models, data sets and configs that there are',
}
_HELP = f"""usage: mmkd-tas PART [options]

Distil any image classifier into any other.

{''.join(f'  {part:9} {what}{chr(10)}' for part, what in PARTS.items())}
`mmkd-tas PART --help` shows options and examples; `mmkd-tas --version`, the version."""


def main(part: str | None = None) -> None:
    """Run the command, or, for a file of ``tools/``, one of its parts."""
    program, *arguments = sys.argv
    program = Path(program).name
    if part is None:
        part, *arguments = arguments or ['--help']
        program = f'mmkd-tas {part}'
    cli.run(lambda: _run(part, program, arguments))


def _run(part: str, program: str, arguments: list[str]) -> None:
    if part in ('--help', '-h'):
        print(_HELP)
    elif part == '--version':
        print(__version__)
    elif part not in PARTS:
        raise SetupError(f"mmkd-tas has no part '{part}'{suggest(part, PARTS)}")
    else:
        module = importlib.import_module(f'.{part}', __name__)
        parser = argparse.ArgumentParser(
            program,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        module.main(parser.parse_args(arguments))
