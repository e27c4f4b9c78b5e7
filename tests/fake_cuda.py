"""CUDA tensors where there is no GPU: their devices, types and shapes, without the numbers."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)


def is_on(device, value):
    return isinstance(value, torch.Tensor) and value.device.type == device


class NoWaiting(TorchDispatchMode):
    """Refuse copies between CPU and GPU, for each of which a real step would wait.

    Those to the GPU may be made without, from page-locked memory, as ``sent`` does. What reads
    single values (``.item()``, ``if tensor:``) or makes shapes of them fails by itself: fake
    tensors have no values.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation."""
        kwargs = kwargs or {}
        if func is ATEN._pin_memory.default:
            return args[0]  # there is no memory to lock
        source, target, waits = None, None, False
        if func is ATEN._to_copy.default:
            source, target = args[0].device, kwargs.get('device')
            waits = not kwargs.get('non_blocking')
        elif func is ATEN.copy_.default:
            source, target = args[1].device, args[0].device
            waits = True not in args[2:]
        elif func in INDEXED and any(is_on('cpu', index) for index in args[1]):
            source, target, waits = 'cpu', args[0].device, True
        if target is not None:
            source, target = torch.device(source).type, torch.device(target).type
            if source != target and (waits or target == 'cpu'):
                raise RuntimeError(f'a step waits for a copy from {source} to {target}')
        return func(*args, **kwargs)


@contextlib.contextmanager
def fake_cuda(mode=None):
    """Within it, tensors on ``'cuda'`` can be made, and autocast follows CUDA's rules.

    Tensors can be used in another such context with the same mode.
    """
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('torch.cuda.amp.common.amp_definitely_not_available', lambda: False)
        patch.setattr('torch.cuda.is_bf16_supported', lambda *_, **__: True)
        try:
            with mode or FakeTensorMode() as mode, NoWaiting():
                yield mode
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def empty_on(device):
    """Return what makes, of a tensor, one like it on a device, without numbers."""

    def moved(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    return moved


def batch_on(device, data):
    """Move images and samples of a distillation, without their numbers."""
    images, samples = data
    moved = empty_on(device)
    on_device = [sample.clone() for sample in samples]
    for sample in on_device:
        for name, value in sample.items():
            sample.set_field(moved(value), name)
    return moved(images), on_device


@contextlib.contextmanager
def on_meta():
    """Within it, losses run on ``'meta'``, where a backward pass works and autocast does not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('torch.autocast', lambda *_, **__: contextlib.nullcontext())
        yield
