"""Activation checkpointing."""

import torch
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


def nested(call):
    """Whether a backward pass runs another one, which refuses to be asked for a gradient."""
    x = torch.ones(1, 2, requires_grad=True)
    try:
        torch.autograd.grad(call(x).sum(), x)
    except RuntimeError:
        return True
    return False


def test_activation_checkpointing_leaves_the_backward_pass_whole():
    """For those who do not choose a kind, however they have imported the functions."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    wrapped = nn.Sequential(nn.Linear(2, 2))
    turn_on_activation_checkpointing(wrapped, '0')  # mmengine's, who has them by name
    assert not nested(wrapped)
    assert not nested(lambda x: checkpoint(layers, x))
    assert not nested(lambda x: checkpoint_sequential(layers, 2, x))
    assert nested(lambda x: checkpoint(layers, x, use_reentrant=True))
