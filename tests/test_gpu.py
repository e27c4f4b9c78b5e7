"""What only shows over several steps, or with a GPU: memory, the loss scaler, NCCL, SyncBN."""

import copy
import gc

import pytest
import torch
from helpers import same, train
from pairs import batch, distillation, total
from processes import free_port

from mmkd_tas.checkpoint import read_checkpoint

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


def memory_of(device):
    """Bytes: the most since the last call on a GPU, of all tensors that live on a CPU."""
    if device.type == 'cuda':
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak
    gc.collect()
    # of other tests, fake tensors may be left, which have no memory
    plain = (torch.Tensor, torch.nn.Parameter)
    tensors = [x for x in gc.get_objects() if type(x) in plain and x.device.type == 'cpu']
    return sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values()
    )


@pytest.mark.parametrize('method', ['tas'])
def test_no_record_outlives_its_step(method, device):
    model = distillation(method, 'resnet', 'vit').train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    data = batch(model)
    used = {}
    steps = 50 if device.type == 'cuda' else 6
    for step in range(1, steps + 1):
        total(model(*data, mode='loss')).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (2, 3, steps - 1, steps):
            used[step] = memory_of(device)
    assert used[steps] == used[3]


def scaled_step(model, optimizer, scaler, data, precision):
    with torch.autocast(data[0].device.type, precision):
        loss = total(model(*data, mode='loss'))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='needs torch 2.3')
def test_a_loss_scaler_leaves_out_what_overflows_and_resumes(device):
    precision = torch.float16 if device.type == 'cuda' else torch.bfloat16
    model = distillation('tas', 'resnet', 'vit').train().to(device)
    data = batch(model)
    begin = {name: p.clone() for name, p in model.named_parameters()}

    def prepared(scale):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return optimizer, torch.amp.GradScaler(device.type, init_scale=scale)

    optimizer, scaler = prepared(2.0**126)
    scaled_step(model, optimizer, scaler, data, precision)
    assert all(torch.equal(p, begin[name]) for name, p in model.named_parameters())
    assert scaler.get_scale() == 2.0**125
    scaler.update(2.0**10)
    scaled_step(model, optimizer, scaler, data, precision)
    assert any(not torch.equal(p, begin[name]) for name, p in model.named_parameters())
    assert all(p.isfinite().all() for p in model.parameters())
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scaler.state_dict()))
    ends = []
    for _ in range(2):
        optimizer, scaler = prepared(1.0)
        for part, state in zip((model, optimizer, scaler), copy.deepcopy(saved), strict=True):
            part.load_state_dict(state)
        torch.manual_seed(0)
        scaled_step(model, optimizer, scaler, data, precision)
        ends.append(copy.deepcopy([*model.state_dict().values()]))
        assert scaler.get_scale() == 2.0**10
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)


@needs_gpu
@pytest.mark.gpu
def test_one_process_of_nccl_with_sync_bn_in_float16(tmp_path):
    """A whole run, and its resumption."""
    run = dict(CUDA_VISIBLE_DEVICES='0', RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')
    run.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    options = ['--dataset=digits200', '--pair=vit-w64_resnet18-w4', '--method=tas', '--amp']
    options += ['--launcher=pytorch', '--work-dir=run', '--cfg-options', 'sync_bn=torch']
    options += ['model.random_teacher=True']
    for extra in (['train_cfg.max_epochs=2'], ['train_cfg.max_epochs=3', '--resume']):
        log = train(*options, *extra, cwd=tmp_path, env=run).stdout
        assert 'SyncBatchNorm' in log
    second, third = (read_checkpoint(tmp_path / f'run/epoch_{i}.pth') for i in (2, 3))
    assert second['optimizer']['loss_scaler']['scale'] > 0
    assert not same(second['state_dict'], third['state_dict'])
    assert all(value.isfinite().all() for value in third['state_dict'].values())
