"""Models, losses and data preprocessors of mmpretrain."""

from collections.abc import Callable
from typing import Any

import torch
from mmpretrain.models import ClsDataPreprocessor, HuggingFaceClassifier, TimmClassifier
from mmpretrain.models.losses.utils import convert_to_one_hot as waiting
from mmpretrain.models.utils.attention import ShiftWindowMSA
from mmpretrain.structures import DataSample
from torch import nn

from . import around, patch, replace, source
from .training import sent


def _add_prefix(state_dict: dict, prefix: str, *args: Any) -> None:
    """Put ``model.`` into the keys of a wrapped model, unless it is there already.

    Its hooks strip it when the model is saved and add it when it is loaded, but
    inside another model PyTorch ignores the stripped copy.
    """
    own = [key for key in state_dict if key.startswith(prefix)]
    if not any(key.startswith(f'{prefix}model.') for key in own):
        for key in own:
            state_dict[f'{prefix}model.{key[len(prefix) :]}'] = state_dict.pop(key)


_WRAPPERS = (TimmClassifier, HuggingFaceClassifier)


@patch(lambda: 'startswith' not in source(TimmClassifier._add_state_dict_prefix))
def names_of_wrapped_models() -> None:
    """mmpretrain 1.2.0, models/classifiers/timm.py:203: wrapped models load inside others."""
    for kind in _WRAPPERS:  # in place, for the models that are there already
        kind._add_state_dict_prefix.__code__ = _add_prefix.__code__


@patch(lambda: all('init_weights' not in vars(kind) for kind in _WRAPPERS))
def timm_weights() -> None:
    """mmpretrain 1.2.0, models/classifiers/timm.py:64: wrapped models keep pretrained weights."""

    # When a training starts, mmengine calls init_weights() of the wrapped model,
    # which draws new weights even where pretrained=True has loaded some.
    def initialised_by_its_library(init_weights: Callable, self: nn.Module) -> None:
        self.model.is_init = True
        init_weights(self)

    for kind in _WRAPPERS:
        around(kind, 'init_weights')(initialised_by_its_library)


@patch(lambda: 'int(windows.shape[0]' in source(ShiftWindowMSA.window_reverse))
def batches_of_any_size_in_windows() -> None:
    """mmpretrain 1.2.0, models/utils/attention.py:461: exported Swins take batches of any size."""

    # mmpretrain's computes the number of images as a Python number, a constant of the graph.
    def window_reverse(windows: torch.Tensor, H: int, W: int, window_size: int) -> torch.Tensor:  # noqa: N803
        across = (H // window_size, W // window_size)
        x = windows.unflatten(0, (-1, *across)).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, H, W, windows.shape[-1])

    ShiftWindowMSA.window_reverse = staticmethod(window_reverse)


@patch(lambda: not ClsDataPreprocessor()._non_blocking)
def batches_without_waiting() -> None:
    """mmpretrain 1.2.0, models/utils/data_preprocessor.py:97: labels are sent without a wait."""

    @around(ClsDataPreprocessor, 'forward')
    def forward_without_waiting(
        forward: Callable, self: ClsDataPreprocessor, data: dict, training: bool = False
    ) -> dict:
        if self.device.type != 'cpu':
            self._non_blocking = True  # for images that the loader has in page-locked memory
            samples = data.get('data_samples') or []
            for name in ('gt_label', 'gt_score'):
                if all(isinstance(s, DataSample) and name in s for s in samples):
                    parts = [sample.get(name) for sample in samples]
                    whole = sent(torch.cat(parts), self.device)
                    parts = whole.split([len(part) for part in parts])
                    for sample, part in zip(samples, parts, strict=True):
                        sample.set_field(part, name, dtype=torch.Tensor)
        return forward(self, data, training)


@patch(lambda: 'item()' in source(waiting))
def one_hot_without_waiting() -> None:
    """mmpretrain 1.2.0, models/losses/utils.py:103: one-hot vectors are made without a wait."""

    def convert_to_one_hot(targets: torch.Tensor, classes: int) -> torch.Tensor:
        # which tells labels that are too large, on a GPU without a wait
        return nn.functional.one_hot(targets.long().squeeze(-1), classes)

    replace(waiting, convert_to_one_hot)
