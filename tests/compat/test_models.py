"""Models of other libraries."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn


@pytest.fixture(params=['timm', 'hugging face'])
def wrapped(request, tmp_path):
    """The config of a small model of another library."""
    if request.param == 'timm':
        sizes = dict(depth=1, img_size=32, num_classes=3)
        return dict(type='TimmClassifier', model_name='vit_tiny_patch16_224', **sizes)
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
    transformers.ViTConfig(image_size=32, **sizes).save_pretrained(tmp_path)
    return dict(type='HuggingFaceClassifier', model_name=str(tmp_path))


def test_a_wrapped_model_keeps_its_weights_when_training_starts(wrapped):
    model = MODELS.build(wrapped)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_wrapped_model_inside_another_finds_its_weights(wrapped):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Linear(1, 1)
            self.inner = MODELS.build(wrapped)
            self.after = nn.Linear(1, 1)

    saved, loaded = Outer(), Outer()
    from mmengine.runner.checkpoint import load_state_dict

    load_state_dict(loaded, saved.state_dict(), strict=True)
    for (key, ours), theirs in zip(loaded.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(ours, theirs), key
    # alone, it still reads and writes the library's own keys
    loaded.inner.model.load_state_dict(saved.inner.state_dict())
