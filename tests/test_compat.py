import copy
import json
import os
import pickle
import resource
import subprocess
import sys
import textwrap
import uuid
from collections import OrderedDict
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from helpers import REPO, TINY, captured_log
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper, scheduler
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TRANSFORMS
from mmengine.runner import CheckpointLoader, Runner, save_checkpoint
from mmrazor.registry import MODELS as RAZOR_MODELS
from processes import run_together
from torch import nn

from mmkd_tas import compat
from mmkd_tas.compat import write_whole
from mmkd_tas.errors import SetupError


def in_new_process(code, *args):
    """Run Python code in a process of its own; return what it prints."""
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code), *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(REPO)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.strip()


def load(file):
    return CheckpointLoader.load_checkpoint(str(file), 'cpu', logger='silent')


# --- what imports ---------------------------------------------------------------


def test_applied_names_every_mend_and_apply_is_idempotent():
    before, load_before = compat.applied(), torch.load
    assert {'safe_checkpoints', 'whole_checkpoints', 'quantization', 'timm_weights'} <= set(before)
    assert all(': ' in sentence for sentence in before.values())
    compat.apply()
    assert compat.applied() == before
    assert torch.load is load_before


def test_mmrazor_imports_whole():
    printed = in_new_process("""
        import mmkd_tas
        import mmrazor.datasets, mmrazor.engine, mmrazor.implementations, mmrazor.models
        from mmrazor.models import DKDLoss, KLDivergence, SingleTeacherDistill
        print('imported')
    """)
    assert printed.endswith('imported')


def test_quantization_says_why_it_is_off():
    quantizer = dict(
        type='mmrazor.OpenVINOQuantizer',
        global_qconfig={},
        tracer=dict(type='mmrazor.CustomTracer'),
    )
    with pytest.raises(NotImplementedError, match='quantization.*PyTorch'):
        RAZOR_MODELS.build(quantizer)
    from mmrazor.structures.quantization import BackendConfigs

    with pytest.raises(NotImplementedError, match='BackendConfigs'):
        BackendConfigs['openvino']


def test_mmrazor_finds_mmcls_in_mmpretrain():
    import mmcls.structures
    import mmpretrain.models
    import mmpretrain.structures
    from mmcls.datasets.transforms.formatting import PackClsInputs
    from mmrazor.models.architectures.classifiers.image import ImageClassifier
    from mmrazor.models.losses.kd_soft_ce_loss import soft_cross_entropy

    assert mmcls.structures is mmpretrain.structures
    assert mmpretrain.structures.__spec__.name == 'mmpretrain.structures'
    assert mmcls.structures.ClsDataSample is mmpretrain.structures.DataSample
    assert PackClsInputs.__name__ == 'PackInputs'
    assert issubclass(ImageClassifier, mmpretrain.models.ImageClassifier)
    loss = RAZOR_MODELS.build(dict(type='mmrazor.KDSoftCELoss', tau=1.0))
    logits = torch.randn(4, 3)
    expected = soft_cross_entropy(logits, logits.softmax(1), reduction='mean')
    torch.testing.assert_close(loss(logits, logits), expected)


@pytest.mark.parametrize('without_setuptools', [False, True])
def test_configs_of_other_packages(without_setuptools):
    hide = """
        import importlib.abc, sys
        class Hidden(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition('.')[0] in ('pkg_resources', 'setuptools'):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Hidden())
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda n, *a: None if n == 'pkg_resources' else find(n, *a)
    """
    code = """
        import mmkd_tas
        from mmengine.config import Config
        from mmkd_tas.registry import MODELS
        import tempfile, os
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, 'c.py')
            open(file, 'w').write("_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py']")
            print(Config.fromfile(file).model.backbone.depth)
        model = MODELS.build(dict(cfg_path='mmpretrain::resnet/resnet18_8xb32_in1k.py'))
        print(model.head.num_classes)
    """
    printed = in_new_process((hide if without_setuptools else '') + code)
    assert printed.split('\n')[-2:] == ['18', '1000']


# --- checkpoints are safe -------------------------------------------------------


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'evil',
    [
        lambda mark: Evil(os.mkdir, mark),
        lambda mark: Evil(os.system, f'mkdir {mark}'),
        lambda mark: Evil(eval, f'__import__("os").mkdir({mark!r})'),
        lambda mark: Evil(getattr, OrderedDict, 'fromkeys'),
        lambda mark: Evil(getattr, HistoryBuffer, '__init__'),
        lambda mark: np.array([Evil(os.mkdir, mark)], dtype=object),
        lambda mark: {'log': HistoryBuffer([1.0], [1]), 'x': Evil(os.mkdir, mark)},
    ],
)
def test_a_checkpoint_cannot_run_code(tmp_path, evil, zipped):
    mark = tmp_path / 'mark'
    file = tmp_path / 'evil.pth'
    content = {'state_dict': {'w': torch.ones(1)}, 'meta': evil(str(mark))}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        load(file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)
    assert not mark.exists()


def test_a_downloaded_checkpoint_cannot_run_code(tmp_path):
    mark = tmp_path / 'mark'
    torch.save({'x': Evil(os.mkdir, str(mark))}, tmp_path / 'evil.pth')
    from mmengine.runner.checkpoint import load_url

    with pytest.raises(pickle.UnpicklingError):
        load_url((tmp_path / 'evil.pth').as_uri(), model_dir=str(tmp_path / 'cache'))
    assert not mark.exists()


def test_resuming_does_not_execute_the_config_in_the_checkpoint(tmp_path):
    mark = tmp_path / 'mark'
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 1
    Runner.from_cfg(config).train()
    checkpoint = load(tmp_path / 'epoch_1.pth')
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(mark)!r})'
    torch.save(checkpoint, tmp_path / 'evil.pth')
    config.load_from, config.resume = str(tmp_path / 'evil.pth'), True
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.epoch == 1
    assert not mark.exists()


def test_everything_mmengine_writes_can_be_read(tmp_path):
    """Log history, numbers of NumPy, optimizer, and every scheduler it has."""
    model = nn.Linear(2, 2)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    wrapper.update_params(model(torch.ones(1, 2)).sum())
    arguments = {
        'MultiStepLR': dict(milestones=[1]),
        'StepLR': dict(step_size=1),
        'PolyLR': dict(),
        'OneCycleLR': dict(eta_max=0.1, total_steps=4),
        'CosineRestartLR': dict(periods=[2], eta_min=0.0),
        'ExponentialLR': dict(gamma=0.9),
        'CosineAnnealingLR': dict(T_max=4),
        'LinearLR': dict(),
        'ConstantLR': dict(),
        'ReduceOnPlateauLR': dict(monitor='loss'),
        'LinearMomentum': dict(),
    }
    schedulers = {
        name: PARAM_SCHEDULERS.build(dict(type=name, optimizer=wrapper, **kwargs)).state_dict()
        for name, kwargs in arguments.items()
        if hasattr(scheduler, name)
    }
    hub = MessageHub('test_everything')
    hub.update_scalar('train/loss', 1.5)
    hub.update_info('metrics', {'top1': np.float32(3), 'n': np.int64(4), 'all': np.arange(3)})
    checkpoint = {
        'optimizer': wrapper.state_dict(),
        'param_schedulers': schedulers,
        'message_hub': hub.state_dict(),
        'meta': {'version': mmengine.__version__, 'classes': ('a', 'b'), 'dtype': np.dtype('f4')},
    }
    save_checkpoint(checkpoint, str(tmp_path / 'all.pth'))
    read = load(tmp_path / 'all.pth')
    assert read['message_hub']['log_scalars']['train/loss'].mean() == 1.5
    assert read['message_hub']['runtime_info']['metrics']['all'].tolist() == [0, 1, 2]
    assert read['param_schedulers'].keys() == schedulers.keys()
    assert read['meta'] == checkpoint['meta']
    state = read['optimizer']['state'][0]['momentum_buffer']
    assert torch.equal(state, wrapper.state_dict()['state'][0]['momentum_buffer'])


# --- checkpoints are whole ------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(tmp_path):
    printed = in_new_process(
        """
        import os, resource, signal, sys
        os.chdir(sys.argv[1])
        from mmkd_tas.compat import write_whole
        write_whole(b'old', 'file')
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a disk of 1,000 bytes
        from mmengine.fileio import LocalBackend
        try:
            LocalBackend().put(b'new' * 1000, 'file')
        except OSError as error:
            print(open('file').read(), os.listdir('.'), type(error).__name__)
        """,
        tmp_path,
    )
    assert printed == "old ['file'] OSError"


def _write(rank, barrier, folder):
    barrier.wait(60)
    for _ in range(100):
        write_whole(bytes([rank]) * 100_000, folder / 'file')


def test_several_processes_may_write_the_same_file(tmp_path):
    run_together(_write, tmp_path)
    assert (tmp_path / 'file').read_bytes() in (b'\0' * 100_000, b'\1' * 100_000)
    assert [file.name for file in tmp_path.iterdir()] == ['file']


def test_what_a_killed_process_left_of_a_file_goes_with_a_later_one(tmp_path):
    write_whole(b'1', tmp_path / 'epoch_1.pth')
    remains = [tmp_path / f'.epoch_{i}.pth.{uuid.uuid4().hex}.part' for i in (2, 3)]
    for file in (*remains, tmp_path / '.mine.part'):
        file.write_bytes(b'half')
    for file in (remains[0], tmp_path / '.mine.part'):
        os.utime(file, (0, 0))
    write_whole(b'3', tmp_path / 'epoch_3.pth')
    assert not remains[0].exists()
    assert remains[1].exists()  # another may be writing it now
    assert (tmp_path / '.mine.part').exists()


def test_the_old_checkpoint_goes_when_the_new_one_is_whole(tmp_path, monkeypatch):
    config = Config.fromfile(TINY)
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 2
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    runner = Runner.from_cfg(config)
    save = runner.save_checkpoint

    def fail_at_second(out_dir, filename, *args, **kwargs):
        if filename == 'epoch_2.pth':
            raise OSError('disk full')
        save(out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(runner, 'save_checkpoint', fail_at_second)
    with pytest.raises(OSError, match='disk full'):
        runner.train()
    assert load(tmp_path / 'epoch_1.pth')['meta']['epoch'] == 1
    assert not (tmp_path / 'epoch_2.pth').exists()
    monkeypatch.undo()
    config.resume = True
    Runner.from_cfg(config).train()
    assert [file.name for file in tmp_path.glob('*.pth')] == ['epoch_2.pth']


# --- histories of scalars ---------------------------------------------------------


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


# --- models of other libraries ----------------------------------------------------


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


# --- optimizers -----------------------------------------------------------------


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


# --- activation checkpointing ----------------------------------------------------


def test_activation_checkpointing_leaves_the_backward_pass_whole():
    """For those who do not choose a kind, however they have imported the functions."""
    printed = in_new_process(
        """
        from torch.utils.checkpoint import checkpoint, checkpoint_sequential
        from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
        import torch
        import mmkd_tas
        layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        wrapped = torch.nn.Sequential(torch.nn.Linear(2, 2))
        turn_on_activation_checkpointing(wrapped, '0')
        x = torch.ones(1, 2, requires_grad=True)
        for use in (
            lambda: checkpoint(layers, x),
            lambda: checkpoint_sequential(layers, 2, x),
            lambda: wrapped(x),
            lambda: checkpoint(layers, x, use_reentrant=True),
        ):
            try:
                # the other kind refuses it
                torch.autograd.grad(use().sum(), x)
                print('whole', end=' ')
            except RuntimeError:
                print('nested', end=' ')
        """
    )
    assert printed == 'whole whole whole nested'


# --- no GPU ---------------------------------------------------------------------


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


# --- images that cannot be read ---------------------------------------------------


@pytest.fixture(params=['cv2', 'pillow'])
def load_image(request, tmp_path):
    """Write a file, or none, and load it as an image."""

    def load_image(content, ignore_empty=True, **kwargs):
        path = tmp_path / 'an image.jpg'
        if content is not None:
            path.write_bytes(content)
        kwargs = {'imdecode_backend': request.param, **kwargs}
        loader = TRANSFORMS.build(
            dict(type='LoadImageFromFile', ignore_empty=ignore_empty, **kwargs)
        )
        return loader(dict(img_path=str(path)))

    return load_image


def jpeg():
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    return cv2.imencode('.jpg', image)[1].tobytes()


@pytest.mark.parametrize('content', [b'', b'no image at all', jpeg()[:50], b'BM' + bytes(60)])
def test_what_decoders_refuse_is_a_broken_image(load_image, content):
    assert load_image(jpeg())['img'].shape == (20, 20, 3)
    with captured_log() as messages:
        assert load_image(content) is None
    assert ["an image.jpg' cannot be read as an image" in text for text in messages] == [True]
    with pytest.raises(SetupError, match="an image.jpg' cannot be read as an image: replace it"):
        load_image(content, ignore_empty=False)


@pytest.mark.parametrize('ignore_empty', [True, False])
def test_what_is_no_fault_of_an_image_is_raised(load_image, ignore_empty):
    with pytest.raises(FileNotFoundError, match='an image.jpg'):
        load_image(None, ignore_empty)
    load_image(jpeg(), ignore_empty)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match='Too many open files'):
            load_image(None, ignore_empty)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(ValueError, match='Supported backends are'):
        load_image(jpeg(), ignore_empty, imdecode_backend='openev')
    with pytest.raises((KeyError, ValueError), match='colour'):
        load_image(jpeg(), ignore_empty, color_type='colour')
    with pytest.raises(AttributeError):  # TurboJPEG is not set up
        load_image(jpeg(), ignore_empty, imdecode_backend='turbojpeg')
