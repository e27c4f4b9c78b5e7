import pytest
import torch

from mmkd_tas.models import LogitAccuracy


@pytest.mark.parametrize('shift', [-100.0, -0.5, 0.0, 100.0])
def test_the_sign_of_the_logits_does_not_count(shift):
    """Those of a model trained with binary cross-entropy are negative for most classes."""
    logits = torch.eye(4) + shift
    assert LogitAccuracy()(logits, torch.arange(4)).item() == 100
    assert LogitAccuracy()(logits, torch.tensor([0, 1, 2, 0])).item() == 75
    shares = torch.tensor([[0.6, 0.4, 0, 0]]).repeat(4, 1)
    assert LogitAccuracy()(logits, shares).item() == 25
