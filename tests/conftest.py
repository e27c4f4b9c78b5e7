import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope

import mmkd_tas  # noqa: F401  (the mends)

REPO = Path(__file__).parents[1]
TINY = REPO / 'tests/configs/tiny_distill.py'


def pytest_addoption(parser):
    parser.addoption('--runslow', action='store_true', help='also run tests marked slow')


def pytest_collection_modifyitems(config, items):
    if not config.getoption('--runslow'):
        for item in items:
            if 'slow' in item.keywords:
                item.add_marker(pytest.mark.skip(reason='needs --runslow'))


@pytest.fixture(autouse=True)
def _fresh():
    """The same randomness for every test, and mmpretrain's scope."""
    torch.manual_seed(0)
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


def run_tool(*args, cwd, ok=True, env=None):
    """Run ``python tools/... args`` as a user would; return the finished process."""
    process = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1', **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if ok:
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process


def train(*args, cwd, **kwargs):
    return run_tool(REPO / 'tools/train.py', *args, cwd=cwd, **kwargs)


def fails(*args, cwd, saying):
    """The tool ends with one sentence that says so, and without a traceback."""
    process = run_tool(*args, cwd=cwd, ok=False)
    output = process.stdout + process.stderr
    assert process.returncode == 1, output[-3000:]
    assert 'Traceback' not in output, output[-3000:]
    sentences = [line for line in process.stderr.splitlines() if line.startswith('error: ')]
    assert len(sentences) == 1, process.stderr[-3000:]
    for part in [saying] if isinstance(saying, str) else saying:
        assert part in sentences[0], sentences[0]
    return sentences[0]
