import pytest
import torch
from helpers import TINY
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from mmkd_tas import compat

compat.apply()


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


@pytest.fixture(scope='session')
def tiny_teacher(tmp_path_factory):
    """A checkpoint for the teacher of the tiny config."""
    init_default_scope('mmpretrain')
    teacher = MODELS.build(Config.fromfile(TINY).model.teacher)
    file = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save({'state_dict': teacher.state_dict(), 'meta': {}}, file)
    return file


GPUS = [pytest.param('cuda', marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


@pytest.fixture(params=['cpu', *GPUS])
def device(request):
    """The CPU, and the GPU where there is one: ``-m gpu`` runs what uses that alone."""
    return torch.device(request.param)
