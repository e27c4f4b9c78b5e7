"""The wheel alone: built from the sdist, installed into an environment outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import REPO
from test_docs import blocks
from test_folder import draw

ENDINGS = ('.py', '.md', '.yml')


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    # without what earlier builds have left in the checkout
    left_out = shutil.ignore_patterns('.*[!m]', 'build', 'site', '*.egg-info', 'data', 'work_dirs')
    shutil.copytree(REPO, folder / 'source', symlinks=True, ignore=left_out)
    build = 'from setuptools.build_meta import *; build_sdist("..")'
    subprocess.run([sys.executable, '-c', build], cwd=folder / 'source', check=True, stdout=-3)
    (sdist,) = folder.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / 'unpacked', filter='data')
    build = build.replace('sdist', 'wheel')
    (source,) = (folder / 'unpacked').iterdir()
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, stdout=-3)
    return next(source.parent.glob('*.whl'))


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory):
    """Run ``mmkd-tas`` in an empty folder, with the wheel instead of this checkout."""
    folder = tmp_path_factory.mktemp('user')
    python = folder / 'env/bin/python'
    venv.create(folder / 'env', with_pip=False)
    site = next((folder / 'env/lib').glob('*/site-packages'))
    libraries = sysconfig.get_path('purelib')
    # what a path file of this environment would do, and no editable install of the checkout
    (site / 'libraries.pth').write_text(f'{libraries}\n')
    pip = [sys.executable, '-m', 'pip', '-q', '--python', python, 'install', '--no-deps']
    subprocess.run([*pip, '--no-index', '--ignore-installed', wheel], check=True)
    (folder / 'empty').mkdir()

    def run(*command, ok=True):
        env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
        command = [python.parent / command[0], *map(str, command[1:])]
        process = subprocess.run(
            command, cwd=folder / 'empty', env=env, capture_output=True, text=True, timeout=300
        )
        assert ok == (process.returncode == 0), process.stdout[-3000:] + process.stderr[-3000:]
        return process.stdout + process.stderr

    run.folder = folder / 'empty'
    return run


def test_the_wheel_holds_configs_and_tools(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '/.mim/' in name}
    folders = {path for name in ('configs', 'tools') for path in (REPO / name).rglob('*')}
    files = {path for path in folders if path.suffix in (*ENDINGS, '.sh')}
    files = {f for f in files if '__pycache__' not in f.parts}
    expected = {f'mmkd_tas/.mim/{file.relative_to(REPO)}' for file in files}
    assert names == expected | {'mmkd_tas/.mim/model-index.yml'}


def test_the_wheel_alone(installed):
    (installed.folder / 'named.py').write_text(
        "_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py',\n"
        "    'mmkd_tas::_base_/methods/tas.py']\n"
        'method = _base_.distiller.type\n'
    )
    (installed.folder / 'lazy.py').write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n'
        '    from mmkd_tas.configs._base_.datasets.digits import *\n'
    )
    where = """
import mmkd_tas
from mmengine.config import Config
print(mmkd_tas.__file__, Config.fromfile('named.py').model.backbone.depth,
      Config.fromfile('lazy.py').train_dataloader.dataset.type)
"""
    file, *read = installed('python', '-c', where).splitlines()[-1].split()
    assert Path(file).is_relative_to(installed.folder.parent)
    assert read == ['18', 'mmkd_tas.Digits']
    listed = installed('mmkd-tas', 'list')
    for name in ('tas-rsd', 'digits200', 'resnet18-w16', 'timm:NAME'):
        assert f'  {name} ' in listed
    composed = '--dataset', 'digits200', '--pair', 'resnet18-w16,vit-w64', '--method', 'kd'
    options = 'train_cfg.max_epochs=1', 'param_scheduler=[]', 'model.random_teacher=True'
    installed('mmkd-tas', 'train', *composed, '--work-dir', 'run', '--cfg-options', *options)
    assert 'tensors' in installed('mmkd-tas', 'export', 'run', 'student.pth')
    assert (installed.folder / 'student.pth').is_file()


def test_one_line_from_images_to_a_student(installed):
    """The first block of README's three ways, with smaller models and fewer epochs."""
    block = next(b for b in blocks('README.md', 'bash') if b.startswith('mmkd-tas train --data'))
    train, export = block.replace('\\\n', '').splitlines()
    draw(installed.folder / 'data/mine', **{f'{p}/{c}': 5 for p in ('train', 'val') for c in 'ab'})
    save = "import timm, torch; torch.save(timm.create_model('test_vit').state_dict(), 'vit.pth')"
    installed('python', '-c', save)
    smaller = '--teacher-ckpt vit.pth --epochs 1 --input-size 32 --cfg-options '
    smaller += 'model.random_teacher=True train_dataloader.num_workers=0 '
    smaller += 'val_dataloader.num_workers=0'
    for name, other in (
        ('vit_base_patch16_224', 'test_vit'),
        ('mobilenetv3_small_100', 'test_resnet'),
        ('--teacher-epochs 20', '--teacher-epochs 1'),
    ):
        train, export = train.replace(name, other), export.replace(name, other)
    said = installed(*f'{train} {smaller}'.split())
    assert '│ student alone ' in said
    assert f'{export} --to folder' in said  # it says how to go on
    assert 'tensors' in installed(*export.split())
