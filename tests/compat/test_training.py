"""Logs and optimizers."""

import copy
import json
import pickle
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner
from torch import nn


def load(file):
    return CheckpointLoader.load_checkpoint(str(file), 'cpu', logger='silent')


@pytest.mark.parametrize('first', [[], [1, 2], [0.5]])
def test_a_history_equals_one_that_appends(first):
    buffer = HistoryBuffer(first, first, max_length=50)
    values = np.array(first)
    views = []
    for step in range(300):
        value = step if step % 3 else step / 7
        buffer.update(value, step)
        values = np.append(values, value)[-50:]
        assert buffer.data[0].dtype == values.dtype
        assert np.array_equal(buffer.data[0], values)
        views.append((buffer.data[0], values))
        if step == 120:  # copies go their own way
            copies = [copy.copy(buffer), copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))]
            for other in copies:
                other.update(-1)
                assert np.array_equal(other.data[0], np.append(values, -1)[-50:])
    assert buffer.mean(10) == values[-10:].sum() / buffer.data[1][-10:].sum()
    for view, expected in views:  # what was read once stands still
        assert np.array_equal(view, expected)
    assert len(pickle.dumps(buffer)) < 2000
    with pytest.raises(TypeError):
        buffer.update('1')


def test_a_history_does_not_copy_itself_at_each_step():
    buffer, arrays = HistoryBuffer(), []
    for _ in range(10_000):
        buffer.update(0.5)
        base = buffer.data[0].base
        if not arrays or base is None or base is not arrays[-1]:
            arrays.append(base)
    assert len(arrays) < 20


@MODELS.register_module()
class TwoTerms(BaseModel):
    """The smallest thing that trains; its losses differ in each step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer('steps', torch.zeros(()))

    def forward(self, inputs, mode):
        self.steps += 1
        first = (self.layer(inputs) - torch.sin(self.steps)).square().mean()
        return dict(loss_first=first, loss_second=first.detach() / self.steps)


def long_run(folder, windows, iters=5000, resume=None, epochs=5):
    """Train; return what was logged by step, and the losses of each step."""
    seen = []

    class Seen(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(float(outputs['loss_first']))

    runner = Runner(
        model=dict(type='TwoTerms'),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(1))] * (iters // epochs),
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=250),
            checkpoint=dict(type='CheckpointHook', interval=1),
        ),
        custom_hooks=[Seen()],
        log_processor=dict(window_size=10, custom_cfg=windows),
        log_level='ERROR',
        experiment_name=f'{folder} {resume}',
        load_from=resume,
        resume=bool(resume),
    )
    runner.train()
    logged = {}
    for file in sorted(Path(folder).glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            logged[record['step']] = record
    return logged, np.array(seen)


WINDOWS = [
    dict(data_src='loss_first', log_name=f'first_{size}', method_name='mean', window_size=size)
    for size in ('epoch', 2500)
]


def test_long_histories_are_logged_as_ever_and_stay_short(tmp_path):
    logged, seen = long_run(tmp_path / 'run', WINDOWS)
    assert len(seen) == 5000
    assert len(logged) == 20
    for step, record in logged.items():
        until = seen[:step]
        expected = dict(loss_first=until[-10:].mean())
        expected['first_epoch'] = until[(step - 1) // 1000 * 1000 :].mean()
        expected['first_2500'] = until[-2500:].mean()
        for key, value in expected.items():
            assert record[key] == pytest.approx(value, rel=1e-6), (step, key)
    files = [load(tmp_path / f'run/epoch_{i}.pth')['message_hub']['log_scalars'] for i in (3, 5)]
    for scalars in files:
        assert len(scalars['train/loss_first'].data[0]) == 2500
        assert len(scalars['train/loss_second'].data[0]) == 2000
    # a resumed run goes on as if nothing had happened
    start = str(tmp_path / 'run/epoch_3.pth')
    again, _ = long_run(tmp_path / 'again', WINDOWS, resume=start)
    resumed = load(tmp_path / 'again/epoch_5.pth')['message_hub']['log_scalars']
    for key in ('train/loss_first', 'train/loss_second'):
        for got, expected in zip(resumed[key].data, files[1][key].data, strict=True):
            assert np.array_equal(got, expected)
    for step, record in again.items():
        for key in ('loss_first', 'loss_second', 'first_epoch', 'first_2500'):
            assert record[key] == logged[step][key]


@pytest.mark.parametrize('window', [dict(window_size='global'), {}])
def test_a_log_of_the_whole_history_keeps_it(tmp_path, window):
    source = dict(data_src='loss_first', log_name='whole', method_name='max', **window)
    logged, seen = long_run(tmp_path, [source], iters=4400, epochs=2)
    last = max(logged)
    assert last > 4000
    assert logged[last]['whole'] == pytest.approx(seen[:last].max(), rel=1e-6)
    scalars = load(tmp_path / 'epoch_2.pth')['message_hub']['log_scalars']
    assert len(scalars['train/loss_first'].data[0]) == 4400
    assert len(scalars['train/loss_second'].data[0]) == 2200


def test_scalars_are_flat():
    model = nn.Linear(2, 2)
    model.scale, model.shift = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    custom = {'shift': dict(decay_mult=0.5)}
    rules = dict(bias_decay_mult=0.0, flat_decay_mult=0.25, custom_keys=custom)
    optimizer = dict(type='SGD', lr=1.0, weight_decay=0.8)
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer, paramwise_cfg=rules))
    decay = {id(g['params'][0]): g['weight_decay'] for g in wrapper.param_groups}
    decay = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert decay == {'weight': 0.8, 'bias': 0.0, 'scale': 0.2, 'shift': 0.4}


@pytest.mark.skipif(torch.cuda.is_available(), reason='is about machines without a GPU')
def test_mixed_precision_without_a_gpu():
    model = nn.Linear(4, 4)
    wrapper = mmengine.registry.OPTIM_WRAPPERS.build(
        dict(type='AmpOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    )
    before = model.weight.clone()
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    wrapper.update_params(out.float().sum())
    torch.testing.assert_close(model.weight, before - 0.2)
    wrapper.load_state_dict(wrapper.state_dict())
