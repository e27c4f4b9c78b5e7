"""Models by name, as the tool prints them."""

import re

import pytest
from helpers import REPO, call, ends_with

TOOL = REPO / 'tools/print_stages.py'


def test_names_of_every_origin(capsys):
    call(TOOL, 'timm:test_resnet', '--input', '64')
    assert 'layer4' in capsys.readouterr().out


def test_patterns(capsys):
    call(TOOL, 'timm:test_resne?', '--input', '64')
    out = capsys.readouterr().out
    assert 'layer4' in out
    assert '1 models: 1 with four stages, 0 not' in out


@pytest.mark.parametrize(
    ('name', 'said'),
    [
        ('resnet19', "mmpretrain has no model 'resnet19'; did you mean .*'timm:resnet18"),
        ('timm:resnet_18', "timm has no model 'resnet_18'; .*'torchvision:resnet18'"),
        ('timm:abc*', "no model has a name like 'timm:abc"),
        ('hf:no/such/folder', "'hf:no/such/folder' is neither a folder"),
    ],
)
def test_mistakes(name, said, monkeypatch):
    if name.startswith('hf:'):
        pytest.importorskip('transformers')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert re.search(said, ends_with(TOOL, name))
