"""Save the student of a run for use without this package.

    python tools/export_student.py work_dirs/RUN --to folder
    python tools/export_student.py work_dirs/RUN student.onnx --to onnx
    python tools/export_student.py CONFIG CHECKPOINT student.pth

A file (.pth, .safetensors) loads in the library that the student is from; so does a folder, with
its config, the normalisation and the names of the classes. onnx and pt2 (torch.export) take
batches of any size, and are compared with PyTorch before they are written.
"""

import argparse
from pathlib import Path

from mmkd_tas import cli
from mmkd_tas.errors import SetupError
from mmkd_tas.export import FORMATS, Student


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Save the student of a run for use without this package.'
    )
    parser.add_argument('run', help='work dir of the run; or its config, then with CHECKPOINT OUT')
    parser.add_argument('paths', nargs='*', metavar='[CHECKPOINT] OUT', help='what to write')
    parser.add_argument('--to', choices=[*FORMATS], default='file', help='default: %(default)s')
    return parser.parse_args()


def main() -> None:
    """Export."""
    args = parse_args()
    *checkpoint, out = args.paths or [None]
    if len(checkpoint) > 1 or not (checkpoint or Path(args.run).is_dir()):
        raise SetupError('give WORK_DIR, WORK_DIR OUT, or CONFIG CHECKPOINT OUT')
    name, write = FORMATS[args.to]
    out = Path(args.run, name) if out is None else Path(out)
    print(f'{out}: {write(Student.of_run(args.run, *checkpoint), out)}')


if __name__ == '__main__':
    cli.run(main)
