import itertools
import json

import numpy as np
import pytest
import torch
from helpers import TINY
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.models import ClsDataPreprocessor
from pairs import batch, distillation
from processes import run_processes, run_together

from mmkd_tas.errors import SetupError
from mmkd_tas.models.algorithms.teacher_cache import AnswerStore, TeacherCache, description

METHODS = ('kd', 'dkd', 'dist', 'ofa', 'hcd', 'rsd', 'tas', 'cc', 'rkd', 'crd')
_names = itertools.count()


class SlotHook(Hook):
    """Takes note of the image that comes with each slot, run by run."""

    seen = []

    def before_train(self, runner):
        self.seen.append(set())

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for image, sample in zip(data_batch['inputs'], data_batch['data_samples'], strict=True):
            self.seen[-1].add((sample.cache_slot, image.double().sum().item()))


def run(folder, seed=0, method='kd', options=None, **cache):
    """Train for three epochs; return the weights and how many images the teacher has seen."""
    config = Config.fromfile(TINY)
    distiller = Config.fromfile(f'configs/_base_/methods/{method}.py').distiller
    config.model.architecture.pop('train_cfg')
    config.model.distiller = distiller.to_dict()
    config.model.teacher_cache = dict(path=str(folder / 'cache'), **cache)
    config.model.input_size = 16
    config.merge_from_dict(
        {
            'work_dir': str(folder / f'run{next(_names)}'),
            'randomness.seed': seed,
            'val_cfg': None,
            'val_dataloader': None,
            'val_evaluator': None,
            **(options or {}),
        }
    )
    checkpoint = folder / 'teacher.pth'  # the same teacher in all runs
    if not checkpoint.exists():
        folder.mkdir(exist_ok=True)
        torch.save(MODELS.build(config.model.teacher).state_dict(), checkpoint)
    config.model.setdefault('teacher_ckpt', str(checkpoint))
    config.experiment_name = f'cache{next(_names)}'
    runner = Runner.from_cfg(config)
    if 'default_hooks.epoch_seed' not in (options or {}):
        runner.register_hook(SlotHook())
    seen = []
    runner.model.teacher.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    runner.train()
    return runner.model.state_dict(), sum(seen)


def same(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_a_run_that_fills_the_cache_equals_one_that_replays_it(tmp_path):
    first, seen = run(tmp_path, augmentations=2)
    assert seen == 80  # 40 images in two augmentations, and a third epoch
    again, seen = run(tmp_path, augmentations=2)
    assert seen == 0
    assert same(first, again)
    _, seen = run(tmp_path, augmentations=2, seed=1, method='ofa')
    assert seen == 0
    # Each slot stands for one image, whatever the run.
    images = {}
    for runs in SlotHook.seen[-3:]:
        for slot, content in runs:
            assert images.setdefault(slot, content) == content
    assert len(images) == 80
    assert len({*images.values()}) > 70


def test_by_default_every_epoch_has_augmentations_of_its_own(tmp_path):
    _, seen = run(tmp_path)
    assert seen == 3 * 40
    images = {}
    for slot, content in SlotHook.seen[-1]:
        images.setdefault(slot % 40, set()).add(content)
    assert len(images) == 40
    assert sum(map(len, images.values())) > 110
    # to write out the precision that holds anyway changes nothing
    _, seen = run(tmp_path, options={'model.teacher_precision': 'float32'})
    assert seen == 0


class Preprocessor(ClsDataPreprocessor):
    def __init__(self, *args, settings=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.itself = [self]


def test_a_description_tells_all_settings_and_no_place():
    def described(**keys):
        return json.dumps(description(Preprocessor(mean=[1.0] * 3, std=[2.0] * 3, **keys)))

    one = described(settings=dict(a=[1, torch.ones(2)], f=max))
    assert one == described(settings=dict(a=[1, torch.ones(2)], f=max))
    others = [
        described(settings=dict(a=[1, torch.zeros(2)], f=max)),
        described(settings=dict(a=[1, torch.ones(2)], f=min)),
        described(settings=dict(a=[1, torch.ones(2)], f=max), to_rgb=True),
        described(settings=dict(a=[1, torch.ones(2)], f=max), pad_size_divisor=8),
    ]
    assert len({one, *others}) == 5
    moved = Preprocessor(mean=[1.0] * 3, std=[2.0] * 3)
    expected = description(moved)
    moved._device = torch.device('cuda:1')
    assert description(moved.eval()) == expected


def test_the_augmentations_are_as_many_as_asked_for(tmp_path):
    def kept(name, **cache):
        folder = tmp_path / name
        options = {'train_cfg.max_epochs': 2, 'model.teacher_cache.path': str(folder)}
        run(tmp_path, options=options, **cache)
        numbers = np.dtype([('pooled', '<f2', (32,)), ('logits', '<f2', (10,))])
        return np.fromfile(folder / 'records', numbers)['logits'].reshape(-1, 40, 10)

    one = kept('one', augmentations=1)
    two = kept('two', augmentations=2)
    assert (two != 0).any(axis=2).all()
    assert (one[0] == two[0]).all()
    assert (two[0] != two[1]).any(axis=1).mean() > 0.9


def test_what_a_crash_left_half_written_is_computed_anew(tmp_path):
    first, _ = run(tmp_path)
    with open(tmp_path / 'cache/records', 'r+b') as file:
        file.seek(3 * 84 + 10)
        file.write(b'\1\2\3')
    again, seen = run(tmp_path)
    assert seen == 1
    assert same(first, again)


@pytest.mark.parametrize('start', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_of_the_loader_read_the_cache(tmp_path, start, monkeypatch):
    """The process that trains reads what the workers have not found, and nothing else."""
    run(tmp_path, options={'train_cfg.max_epochs': 1}, augmentations=2)
    asked = []
    read = AnswerStore.read

    def counted(self, slots):
        asked.append(len(slots))
        return read(self, slots)

    monkeypatch.setattr(AnswerStore, 'read', counted)  # its calls in this process count
    workers = {
        'train_dataloader.num_workers': 1,
        'train_dataloader.persistent_workers': True,
        'env_cfg.mp_cfg.mp_start_method': start,
    }
    weights, seen = run(tmp_path, options=workers, augmentations=2)
    assert seen == 40  # the images of the second of three epochs
    assert 40 <= sum(asked) <= 42  # and Preflight looks at a few
    alone, seen = run(tmp_path, augmentations=2)
    assert seen == 0
    assert sum(asked) >= 160
    assert same(weights, alone)


def test_what_is_broken_is_missing_and_harms_nothing(tmp_path):
    cache = TeacherCache(tmp_path, top_k=2)
    cache.prepare(distillation('kd', 'vit', 'resnet').teacher)
    cache.open(8, {})
    cache.store.write([1], cache._packed(torch.ones(1, 64), torch.arange(5.0)[None]))
    cache.store._rows['classes'][[1, 2]] = 10**6
    assert cache.store.read([1, 2, 3])['missing'] == [0, 1, 2]


def test_the_cached_numbers_are_those_of_the_teacher(tmp_path):
    """Up to float16: the cache gives what the teacher gives."""
    plain = distillation('kd', 'vit', 'resnet')
    images, _ = batch(plain)
    cache = TeacherCache(tmp_path)
    cache.prepare(plain.teacher)
    cache.open(8, {})

    def forward(missing):
        plain.teacher(images[missing], mode='tensor')

    plain.teacher.eval()
    for _ in range(2):
        found = cache([3, 1, 7, 0], forward)
        logits = plain.teacher(images, mode='tensor')
        torch.testing.assert_close(found['logits'], logits, rtol=2e-3, atol=1e-3)
        assert found['pooled'].shape == (4, plain.teacher.stage_view.width)


def _answers(rank, folder):
    torch.manual_seed(0)
    model = distillation('kd', 'vit', 'resnet')
    images, _ = batch(model, images=8)
    model.teacher.eval()
    cache = TeacherCache(folder, max_gb=1)
    cache.prepare(model.teacher)
    cache.open(8, {})
    own = slice(4 * rank, 4 * rank + 4)
    mine = images[own]
    cache(list(range(8))[own], lambda missing: model.teacher(mine[missing], mode='tensor'))
    torch.distributed.barrier()
    found = cache(list(range(8)), lambda missing: pytest.fail('computed again'))
    return found['logits'], model.teacher(images, mode='tensor').detach()


def test_processes_share_a_cache(tmp_path):
    for found, expected in run_processes(_answers, str(tmp_path)):
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize('scale', [1.0, 30.0])
def test_the_largest_logits_keep_their_probabilities(tmp_path, scale):
    model = distillation('kd', 'vit', 'resnet')
    cache = TeacherCache(tmp_path, top_k=3)
    cache.prepare(model.teacher)
    logits = scale * torch.randn(5, cache.classes)
    cache.open(5, {})
    rows = cache._packed(torch.zeros(5, model.teacher.stage_view.width), logits)
    found = cache.store.unpacked(rows)
    top = logits.topk(3, dim=1).indices
    expected, got = (x.double().softmax(1) for x in (logits, found['logits']))
    torch.testing.assert_close(got.gather(1, top), expected.gather(1, top), rtol=0.05, atol=2e-3)
    others = torch.ones_like(got, dtype=torch.bool).scatter(1, top, False)
    rest = got[others].view(5, -1)
    assert torch.equal(rest.amin(1), rest.amax(1))
    expected = expected[others].view(5, -1).sum(1)
    torch.testing.assert_close(rest.sum(1), expected, rtol=0.1, atol=2e-3)


@pytest.mark.parametrize('method', METHODS)
def test_methods_that_take_logits_and_pooled_features(tmp_path, method):
    options = {'connectors.assistant.first': 'student'} if method == 'tas' else {}
    model = distillation(
        method, 'vit', 'resnet', options, teacher_cache=dict(path=str(tmp_path))
    ).train()
    model.teacher_cache.open(8, {})
    seen = []
    model.teacher.register_forward_hook(lambda *_: seen.append(1))
    images, samples = batch(model)
    for slot, sample in enumerate(samples):
        sample.set_field(slot, 'cache_slot', field_type='metainfo')
    first = model(images, samples, mode='loss')
    assert len(seen) == 1 + (method == 'tas')  # the assistant's own last stages
    seen.clear()
    again = model(images, samples, mode='loss')
    assert len(seen) == (method == 'tas')
    for name, value in first.items():
        if name.startswith('distill') and 'dropout' not in name:
            torch.testing.assert_close(again[name], value, rtol=0.2, atol=0.2)


def test_an_assistant_that_starts_with_the_teacher_needs_it(tmp_path):
    with pytest.raises(SetupError, match="takes 'teacher.stage3' too: .*first='student'"):
        distillation('tas', 'vit', 'resnet', teacher_cache=dict(path=str(tmp_path)))


@pytest.mark.parametrize(
    ('options', 'cache', 'saying'),
    [
        ({'train_dataloader.dataset.num_train': 50}, {}, 'another slots and data set'),
        ({'train_dataloader.dataset.pipeline.0.padding': 1}, {}, 'another pipeline'),
        ({'data_preprocessor.std': [90.0] * 3}, {}, 'data preprocessor and input of the teacher'),
        ({'data_preprocessor.to_rgb': True}, {}, 'another data preprocessor:'),
        ({'data_preprocessor.pad_value': 1}, {}, 'another data preprocessor:'),
        ({'model.teacher_precision': 'bfloat16'}, {}, 'another precision of the teacher'),
        ({'optim_wrapper.type': 'AmpOptimWrapper'}, {}, 'another precision of the teacher'),
        ({'train_cfg.max_epochs': 2}, {}, 'another slots'),
        ({'model.teacher_ckpt': None}, {}, 'with another teacher:'),
        ({'model.teacher_cache.max_gb': 1e-6, 'model.teacher_cache.path': 'x'}, {}, 'raise that'),
        ({'default_hooks.epoch_seed': None}, {}, 'do not switch default_hooks.epoch_seed off'),
        (
            {
                'custom_hooks': [
                    dict(type='mmkd_tas.EpochSeedHook'),
                    dict(
                        type='SwitchRecipeHook',
                        schedule=[dict(action_epoch=2, batch_augments=dict(augments=[]))],
                    ),
                ]
            },
            {},
            'SwitchRecipeHook .* changes them during the training',
        ),
        (
            {'model.architecture.train_cfg.augments': dict(type='CutMix', alpha=1.0)},
            {},
            'mixup and',
        ),
        ({}, dict(augmentations=2), 'another slots'),
        ({}, dict(top_k=2), 'another numbers'),
        ({}, dict(augmentations=0), 'not a number from 1 up'),
        ({}, dict(top_k=10), 'below the 10 classes'),
    ],
)
def test_mistakes(tmp_path_factory, options, cache, saying):
    folder = tmp_path_factory.getbasetemp() / 'filled'
    if not folder.exists():
        run(folder)
    with pytest.raises(SetupError, match=saying):
        run(folder, options=options, **cache)


def test_no_room_on_the_disk(tmp_path):
    with pytest.raises(SetupError, match='there is no room for .* GB'):
        run(tmp_path, augmentations=10**11, max_gb=1e20)
    assert not (tmp_path / 'cache/about.json').exists()
    _, seen = run(tmp_path)
    assert seen == 120
    assert json.loads((tmp_path / 'cache/about.json').read_text())['slots'].startswith('40 images')


def _start_together(rank, barrier, teacher, folder):
    """What a run does, of which another begins at the same time."""
    for trial in range(20):
        cache = TeacherCache(f'{folder}/{trial}')
        cache.prepare(teacher)
        barrier.wait(60)
        cache.open(8, {})
        cache.store._checks[rank] = rank + 1
        barrier.wait(60)
        assert cache.store._checks[:2].tolist() == [1, 2]


def test_runs_that_start_together_share_one_cache(tmp_path):
    teacher = distillation('kd', 'vit', 'resnet').teacher
    run_together(_start_together, teacher, tmp_path)
    assert not list(tmp_path.glob('.*'))


@pytest.mark.parametrize('kind', ['empty', 'link', 'nested'])
def test_folders_that_may_become_a_cache(tmp_path, kind):
    folder = tmp_path / 'cache'
    if kind == 'empty':
        folder.mkdir()
    elif kind == 'link':
        folder.symlink_to(tmp_path / 'elsewhere')
    else:
        folder = folder / 'of' / 'mine'
    cache = TeacherCache(folder)
    cache.prepare(distillation('kd', 'vit', 'resnet').teacher)
    cache.open(8, {})
    assert {file.name for file in folder.iterdir()} == {'about.json', 'records', 'checksums'}


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('text')
    cache = TeacherCache(tmp_path)
    cache.prepare(distillation('kd', 'vit', 'resnet').teacher)
    with pytest.raises(SetupError, match='cannot become a new cache .*does not exist yet'):
        cache.open(8, {})
    assert [file.name for file in tmp_path.iterdir()] == ['mine.txt']
