"""Save the student of a run for use without this package.

A file (.pth, .safetensors) loads in the library that the student is from; so does a folder, with
its config, the normalisation and the names of the classes. onnx and pt2 (torch.export) take
batches of any size, and are compared with PyTorch before they are written.

Examples:
  mmkd-tas export work_dirs/RUN --to folder
  mmkd-tas export work_dirs/RUN student.onnx --to onnx
  mmkd-tas export CONFIG CHECKPOINT student.pth
"""

import argparse
from pathlib import Path

from ..errors import SetupError
from ..export import FORMATS, Student


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command line takes."""
    parser.add_argument('run', help='work dir of the run; or its config, then with CHECKPOINT OUT')
    parser.add_argument('paths', nargs='*', metavar='[CHECKPOINT] OUT', help='what to write')
    parser.add_argument('--to', choices=[*FORMATS], default='file', help='default: %(default)s')


def main(args: argparse.Namespace) -> None:
    """Export."""
    *checkpoint, out = args.paths or [None]
    if len(checkpoint) > 1 or not (checkpoint or Path(args.run).is_dir()):
        raise SetupError('give WORK_DIR, WORK_DIR OUT, or CONFIG CHECKPOINT OUT')
    name, write = FORMATS[args.to]
    out = Path(args.run, name) if out is None else Path(out)
    print(f'{out}: {write(Student.of_run(args.run, *checkpoint), out)}')
