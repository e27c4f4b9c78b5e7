"""What must be installed beside the package, and what it says of itself."""

import re
import sys

import pytest
from helpers import REPO

from mmkd_tas import __version__, packages


def test_without_mmcv(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'mmkd_tas\[lite\]', or"):
        packages.check()
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/mmkd-tas', 'list'])
    with pytest.raises(SystemExit, match='^error: mmcv is not installed'):
        packages.check()


def test_a_fork_in_the_place_of_a_package(monkeypatch, tmp_path):
    packages.check()
    for fork in ('mmcv', 'mmengine'):
        folder = tmp_path / f'onedl_{fork}-0.11.0.dist-info'
        folder.mkdir()
        (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: onedl-{fork}\nVersion: 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match='^onedl-mmengine and onedl-mmcv put a fork in the place'):
        packages.check()


def test_one_version():
    assert re.search('^version: (.*)$', (REPO / 'CITATION.cff').read_text(), re.M)[1] == __version__
