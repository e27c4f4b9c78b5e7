"""Save the student of a run for use without this package.

    python tools/export_student.py CONFIG CHECKPOINT OUT

A student of mmpretrain becomes a checkpoint that mmpretrain loads, a timm student
(TimmClassifier) one that timm.create_model(..., checkpoint_path=OUT) loads.
"""

import argparse
import io
from pathlib import Path

import safetensors.torch
import torch
from mmengine.registry import MODELS, init_default_scope

from mmkd_tas import cli, configs
from mmkd_tas.checkpoint import load_weights
from mmkd_tas.compat import write_whole
from mmkd_tas.errors import SetupError


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Save the student of a run for use without this package.'
    )
    parser.add_argument('config', help='config file of the run')
    parser.add_argument('checkpoint', help='checkpoint of the run')
    parser.add_argument('out', help='file to write: .pth, or .safetensors')
    return parser.parse_args()


def main() -> None:
    """Export."""
    args = parse_args()
    suffix = Path(args.out).suffix
    if suffix not in ('.pth', '.safetensors'):
        raise SetupError(f"out: '{args.out}' must end in .pth or .safetensors")
    config = cli.student_config(configs.load_config(args.config))
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    with cli.mistakes_named(config):
        student = MODELS.build(config.model)
    checkpoint = load_weights(student, args.checkpoint, 'checkpoint')
    weights = {key: value.contiguous() for key, value in student.state_dict().items()}
    if suffix == '.safetensors':
        data = safetensors.torch.save(weights)
    else:
        meta = checkpoint.get('meta', {})
        kept = {key: meta[key] for key in ('dataset_meta', 'epoch', 'iter') if key in meta}
        buffer = io.BytesIO()
        torch.save({'state_dict': weights, 'meta': kept}, buffer)
        data = buffer.getvalue()
    write_whole(data, args.out)
    print(f'{args.out}: {len(weights)} tensors, {len(data) / 2**20:.1f} MiB')


if __name__ == '__main__':
    cli.run(main)
