"""What models return, as one vector per image."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torchvision.models import GoogLeNetOutputs

from mmkd_tas.errors import SetupError
from mmkd_tas.outputs import num_classes, vector_of

LOGITS = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    'output',
    [
        LOGITS,
        GoogLeNetOutputs(LOGITS, LOGITS + 1, LOGITS + 2),
        SimpleNamespace(logits=LOGITS, hidden_states=(LOGITS + 1,)),
        {'logits': LOGITS, 'loss': torch.zeros(())},
        (0.5 * LOGITS, 0.5 * LOGITS),
    ],
)
def test_logits(output):
    assert torch.equal(vector_of(output), LOGITS)


@pytest.mark.parametrize(
    'output',
    [
        LOGITS,
        LOGITS[:, None] + torch.tensor([-1.0, 0, 1])[:, None],  # (N, L, D)
        LOGITS[..., None, None] + torch.tensor([[-1.0, 1], [2, -2]]),  # (N, D, H, W)
        (LOGITS + 1, LOGITS),
        SimpleNamespace(last_hidden_state=LOGITS[:, None] + 1, pooler_output=LOGITS),
        SimpleNamespace(last_hidden_state=LOGITS[:, None], pooler_output=None),
    ],
)
def test_features_without_a_head(output):
    assert torch.equal(vector_of(output, headless=True), LOGITS)


@pytest.mark.parametrize(
    ('output', 'said'),
    [
        (LOGITS[:, None], r'returns a tensor \(2, 1, 3\); .* num_classes=0'),
        ((LOGITS, LOGITS[:, :2]), 'returns tuple'),
        ({'out': LOGITS}, 'returns dict'),
        (None, 'returns NoneType'),
    ],
)
def test_what_is_no_classifier(output, said):
    with pytest.raises(SetupError, match=said):
        vector_of(output)


def test_numbers_of_classes():
    timm = dict(type='mmpretrain.TimmClassifier', model_name='test_vit')
    whole = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18),
        head=dict(type='mmpretrain.LinearClsHead', in_channels=512, num_classes=7),
    )
    assert num_classes(MODELS.build(dict(timm, num_classes=7))) == 7
    assert num_classes(MODELS.build(dict(timm, num_classes=0))) == 0
    assert num_classes(MODELS.build(whole)) == 7
    assert num_classes(MODELS.build(dict(whole, head=None))) == 0
    own = dict(whole, head=dict(type='mmpretrain.ClsHead'))
    for count, expected in ((7, 7), (-1, None)):
        backbone = dict(type='mmpretrain.LeNet5', num_classes=count)
        assert num_classes(MODELS.build(dict(own, backbone=backbone))) == expected
    assert num_classes(nn.Linear(3, 7)) is None
