"""Every patch: where it acts, when, and which test fails without it."""

import functools
import inspect
import pickle
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import REPO, environment, in_new_process
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmkd_tas import compat
from mmkd_tas.compat.imports import _names_this_package
from mmkd_tas.hooks import ProgressHook

# What fails without a patch; of a test with many cases, one that does.
TESTS = {
    'compat/test_imports.py': dict(
        package_lookup='test_configs_of_other_packages',
        mmcls_is_mmpretrain='test_mmrazor_finds_mmcls_in_mmpretrain',
        quantization='test_mmrazor_imports_whole',
    ),
    'test_configs.py': dict(configs_of_this_package='test_a_config_in_pure_python'),
    'compat/test_checkpoints.py': dict(
        safe_checkpoints='test_everything_mmengine_writes_can_be_read',
        safe_loading='test_a_checkpoint_cannot_run_code',
        safe_downloads='test_a_downloaded_checkpoint_cannot_run_code',
        no_code_in_resume='test_resuming_does_not_execute_the_config_in_the_checkpoint',
        whole_checkpoints='test_a_full_disk_leaves_the_old_file',
        old_checkpoints_stay='test_the_old_checkpoint_goes_when_the_new_one_is_whole',
    ),
    'test_cli.py': dict(tracebacks_of_hooks='test_a_bug_of_the_user_keeps_its_traceback'),
    'hooks/test_brought.py': dict(hooks_of_models='test_each_hook_is_there_once'),
    'compat/test_patches.py': dict(
        patches_in_workers='test_a_worker_that_is_spawned_has_the_patches'
    ),
    'compat/test_training.py': dict(
        histories_of_scalars='test_a_history_does_not_copy_itself_at_each_step',
        flat_scalars='test_scalars_are_flat',
        cpu_amp='test_mixed_precision_without_a_gpu',
    ),
    'test_fake_cuda.py': dict(
        losses_read_when_logged='test_a_step[kd-resnet-vit]',
        batches_without_waiting='test_a_step[kd-resnet-vit]',
        one_hot_without_waiting='test_a_loss_of_mmpretrain_that_makes_one_hot_vectors',
    ),
    'test_distributed.py': dict(
        cpu_distributed='test_unequal_numbers_of_batches_are_refused',
        sharded_optimizer_is_saved='test_a_shared_optimizer_trains_and_resumes_as_a_whole_one',
        whole_sync_bn='test_sync_bn_reaches_all_that_learns_and_changes_nothing_else',
    ),
    'compat/test_processes.py': dict(
        checkpointing_by_hooks='test_activation_checkpointing_leaves_the_backward_pass_whole'
    ),
    'compat/test_models.py': dict(
        names_of_wrapped_models='test_a_wrapped_model_inside_another_finds_its_weights',
        timm_weights='test_a_wrapped_model_keeps_its_weights_when_training_starts',
    ),
    'test_export.py': dict(
        batches_of_any_size_in_windows='test_onnxruntime_runs_batches_of_any_size[swin]'
    ),
    'compat/test_images.py': dict(broken_images='test_what_is_no_fault_of_an_image_is_raised'),
}
PATCHES = {name: (file, test) for file, names in TESTS.items() for name, test in names.items()}


def test_each_patch_has_a_test():
    assert PATCHES.keys() == compat.patches.keys()
    for file, test in PATCHES.values():
        assert f'\ndef {test.split("[")[0]}(' in (REPO / 'tests' / file).read_text(), test


@pytest.mark.slow
@pytest.mark.parametrize('name', PATCHES)
def test_the_test_of_a_patch_fails_without_it(tmp_path, name):
    if name not in compat.applied():
        pytest.skip('it is not needed here')
    for part in ('mmkd_tas', 'tests', 'configs', 'tools', 'model-index.yml', 'pyproject.toml'):
        (shutil.copytree if (REPO / part).is_dir() else shutil.copy)(REPO / part, tmp_path / part)
    module = Path(inspect.getsourcefile(compat.patches[name][0])).relative_to(REPO)
    before, after = (tmp_path / module).read_text().split(f'\ndef {name}(')
    before = before[: before.rindex('\n@patch(')]
    (tmp_path / module).write_text(f'{before}\n@patch(lambda: False)\ndef {name}({after}')
    path, test = PATCHES[name]
    ended = subprocess.run(
        [sys.executable, '-m', 'pytest', '-x', '-p', 'no:cacheprovider', f'tests/{path}::{test}'],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert re.search('[1-9] failed', ended.stdout), ended.stdout[-2000:]


def test_each_patch_says_what_it_patches():
    for name, (function, _) in compat.patches.items():
        said = re.match(r'(\w+) ([\d.]+), ([\w/]+\.py):(\d+): .*\.$', function.__doc__)
        assert said, (name, function.__doc__)
        package, version, file, line = said.groups()
        module = import_module(package)
        if module.__version__.split('+')[0] == version:
            text = (Path(module.__file__).parent / file).read_text().splitlines()
            assert re.search(r'def |class |import |load_url|config|init_fn', text[int(line) - 1])


def test_the_released_packages_need_every_patch_and_a_second_call_does_nothing():
    new = {'safe_loading'} if torch.__version__ >= '2.6' else {'safe_checkpoints'}
    absent = new | ({'cpu_amp', 'cpu_distributed'} if torch.cuda.is_available() else set())
    before, load_before = compat.applied(), torch.load
    assert before.keys() == compat.patches.keys() - absent
    compat.apply()
    assert compat.applied() == before
    assert torch.load is load_before


class Elsewhere(BaseModel):
    """A model that has nothing to do with this package."""

    def forward(self):
        """Return nothing."""


@pytest.mark.parametrize(
    ('node', 'named'),
    [
        (dict(model=dict(type='mmkd_tas.Classifier')), True),
        (dict(cfg=dict(custom_imports=dict(imports=['mmkd_tas']))), True),
        (dict(model=dict(cfg_path='mmkd_tas::digits/kd.py')), True),
        ((dict(custom_hooks=[ProgressHook()]),), True),
        (dict(custom_hooks=[dict(type=ProgressHook)]), True),
        (dict(work_dir='mmkd_tas/run', model=Elsewhere(), data=[torch.ones(2)]), False),
        (dict(custom_imports=dict(imports=['mmkd_tas_of_mine', 'my.mmkd_tas'])), False),
    ],
)
def test_a_runner_whose_config_names_this_package(node, named):
    assert _names_this_package(node) == named


# Each of these functions runs in a child of one process that has imported the package, no more.
APART = """
import os, pickle, sys, traceback
import mmcv, mmengine, torch
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import LogProcessor, Runner, checkpoint
from mmpretrain.models import ClsDataPreprocessor, TimmClassifier
from torch.utils.checkpoint import checkpoint as recomputed


def state():
    owners = (mmcv, mmengine.runner.runner, checkpoint, LocalBackend, LoadImageFromFile, Runner)
    owners += (CheckpointHook, HistoryBuffer, MessageHub, LogProcessor, ClsDataPreprocessor)
    owners += (TimmClassifier, mmengine.optim.DefaultOptimWrapperConstructor, torch.hub)
    found = {(str(o), k): v for o in owners for k, v in vars(o).items() if k != '__init__'}
    found |= dict(load=torch.load, recomputed=dict(recomputed.__wrapped__.__kwdefaults__))
    if hasattr(torch.serialization, 'get_safe_globals'):
        found['safe'] = list(torch.serialization.get_safe_globals())
    return found


@MODELS.register_module()
class Model(BaseModel):
    def forward(self, inputs=None, mode='loss'):
        pass


folder, before = sys.argv[1], state()
import mmkd_tas
from mmkd_tas import cli, compat
from mmkd_tas.checkpoint import read_checkpoint
from mmkd_tas.models import CrossArchDistill


def another_runner(name='other', **keys):
    Runner(Model(), folder, experiment_name=name)
    keys |= dict(work_dir=folder, experiment_name=f'{name} config')
    Runner.from_cfg(mmengine.Config(dict(model=dict(type='Model'), **keys)))


def our_runner():
    another_runner('ours', custom_imports=dict(imports=['mmkd_tas']))


def command():
    cli.run(lambda: None)


def distillation():
    try:
        CrossArchDistill(None, None, {}, teacher_trainable=True)
    except mmkd_tas.errors.SetupError:
        pass


def reading():
    try:
        read_checkpoint('none.pth')
    except mmkd_tas.errors.SetupError:
        pass


def spawned_worker():
    with open(f'{folder}/worker.pkl', 'rb') as file:
        pickle.load(file)(0)


def another_release():
    del CheckpointHook._save_best_checkpoint, HistoryBuffer.update, Runner.call_hook
    del mmengine.dist.utils._init_dist_pytorch, checkpoint.load_url, LoadImageFromFile.transform
    compat.apply()


def nothing():
    pass


print(state() == before)
for task in (another_runner, our_runner, command, distillation, reading, spawned_worker,
             another_release, nothing):
    sys.stdout.flush()
    if not os.fork():
        try:
            task()
            print(task.__name__, state() == before, *compat.applied())
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope='module')
def apart(tmp_path_factory):
    """Whether something is as before, and the patches in force, by what was done."""
    folder = tmp_path_factory.mktemp('apart')
    loader = dict(dataset=[1], batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False))
    worker = Runner.build_dataloader(loader, seed=0).worker_init_fn
    with open(folder / 'worker.pkl', 'wb') as file:
        pickle.dump(functools.partial(worker, num_workers=1), file)
    untouched, *lines = in_new_process(APART, folder).split('\n')
    found = {line.split(' ')[0]: line.split(' ')[1:] for line in lines}
    return {'import': [untouched, *found['nothing'][1:]], **found}


IMPORTED = {name for name, (f, _) in compat.patches.items() if f.__module__.endswith('.imports')}


@pytest.mark.parametrize('what', ['import', 'another_runner'])
def test_what_works_without_this_package_does_not_change(apart, what):
    assert apart[what] == ['True', *(name for name in compat.applied() if name in IMPORTED)]


@pytest.mark.parametrize('what', ['our_runner', 'command', 'distillation', 'reading'])
def test_a_run_with_it_has_all_patches(apart, what):
    assert apart[what] == ['False', *compat.applied()]


def test_a_worker_that_is_spawned_has_the_patches(apart):
    assert apart['spawned_worker'] == ['False', *compat.applied()]


def test_another_release_needs_no_patch_for_what_it_lacks(apart):
    lacking = {'old_checkpoints_stay', 'histories_of_scalars', 'tracebacks_of_hooks'}
    lacking |= {'cpu_distributed', 'safe_downloads', 'broken_images'}
    assert apart['another_release'][1:] == [n for n in compat.applied() if n not in lacking]
