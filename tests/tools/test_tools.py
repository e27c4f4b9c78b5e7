"""Testing, exporting and comparing, on one run of the tiny config."""

import json
import os
import runpy
import shutil

import mmengine
import pytest
import safetensors.torch
import timm
import torch
from helpers import REPO, TINY, call, ends_with, fails, run_tool, train
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.runner import Runner
from processes import free_port

from mmkd_tas.runs import Run

TOOLS = REPO / 'tools'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """The work dir of a run of two epochs."""
    folder = tmp_path_factory.mktemp('run')
    train(TINY, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=2', cwd=folder)
    return folder / 'run'


def last_top1(work_dir):
    return Run.read(work_dir).top1


def test_test_scores_what_validation_scored(finished, tmp_path):
    checkpoint = finished / 'epoch_2.pth'
    run_tool(TOOLS / 'test.py', TINY, checkpoint, '--out', 'metrics.json', cwd=tmp_path)
    metrics = mmengine.load(tmp_path / 'metrics.json')
    assert metrics == {'accuracy/top1': pytest.approx(last_top1(finished))}


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def test_testing_changes_nothing_in_the_folder_of_a_run(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / 'work_dirs/tiny_distill'
    shutil.copytree(finished, run)
    before, checkpoint = contents(run), run / 'epoch_2.pth'
    call(TOOLS / 'test.py', TINY, checkpoint, '--out', 'metrics.json')
    assert contents(run) == before
    # a log is wanted, and in this very folder: nothing that is read is touched
    call(TOOLS / 'test.py', run / 'tiny_distill.py', checkpoint, '--work-dir', run)
    (log,) = run.glob('test/*/*.log')
    assert 'accuracy/top1' in log.read_text()
    after = contents(run)
    assert {file: after[file] for file in before} == before
    assert Run.read(run).val == Run.read(finished).val
    assert Run.read(run).parameters == Run.read(finished).parameters
    assert {path.name for path in tmp_path.iterdir()} == {'work_dirs', 'metrics.json'}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_an_exported_student_is_plain_mmpretrain(finished, tmp_path, suffix):
    out = tmp_path / f'new/student{suffix}'
    run_tool(TOOLS / 'export_student.py', TINY, finished / 'epoch_2.pth', out, cwd=tmp_path)
    config = Config.fromfile(TINY)
    # stock mmpretrain: no module of this package but the data set
    config.model = {**config.model.architecture, 'data_preprocessor': config.data_preprocessor}
    config.custom_hooks = []
    config.work_dir = str(tmp_path)
    for key in [key for key in config if key.startswith(('train_', 'val_', 'optim', 'param'))]:
        config.pop(key)
    runner = Runner.from_cfg(config)
    if suffix == '.pth':
        exported = torch.load(out, weights_only=True)
        assert exported.keys() == {'state_dict', 'meta'}
        assert exported['meta']['dataset_meta']['classes'] == tuple('0123456789')
        runner.load_checkpoint(str(out), strict=True)
    else:
        runner.model.load_state_dict(safetensors.torch.load_file(out), strict=True)
    assert runner.test()['accuracy/top1'] == pytest.approx(last_top1(finished))


def test_an_exported_timm_student_is_plain_timm(tmp_path):
    config = tmp_path / 'timm_student.py'
    config.write_text(
        f"_base_ = '{TINY}'\n"
        "model = dict(architecture=dict(_delete_=True, type='mmkd_tas.Classifier', "
        "model='timm:test_resnet', num_classes=10), distiller=dict(student_recorders="
        "dict(logits=dict(source='model.fc'))))\n"
        'train_cfg = dict(max_epochs=1)\n'
    )
    train(config, '--work-dir', 'run', cwd=tmp_path)
    out = tmp_path / 'student.pth'
    run_tool(TOOLS / 'export_student.py', config, 'run/epoch_1.pth', out, cwd=tmp_path)
    run_tool(TOOLS / 'test.py', config, out, '--out', 'metrics.json', cwd=tmp_path)
    model = timm.create_model('test_resnet', num_classes=10, checkpoint_path=out).eval()
    cfg = Config.fromfile(config)
    dataset = mmengine.registry.DATASETS.build(cfg.test_dataloader.dataset)
    images = torch.stack([dataset[i]['inputs'] for i in range(len(dataset))])
    labels = [int(dataset[i]['data_samples'].gt_label) for i in range(len(dataset))]
    with torch.no_grad():
        predicted = model((images.float() - 77.7) / 94.8).argmax(1)
    top1 = (predicted == torch.tensor(labels)).float().mean().item() * 100
    assert top1 == pytest.approx(mmengine.load(tmp_path / 'metrics.json')['accuracy/top1'])


def test_compare_runs(finished, tmp_path):
    process = run_tool(
        *(TOOLS / 'compare_runs.py', f'mine={finished}', finished, '--out', 'curves.png'),
        cwd=tmp_path,
    )
    student = Config.fromfile(TINY).model.architecture
    parameters = sum(p.numel() for p in mmengine.registry.MODELS.build(student).parameters())
    for text in ('mine', 'run', f'{last_top1(finished):.2f}', f'{parameters:,}'):
        assert text in process.stdout
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_the_curves(finished, tmp_path):
    run = Run.read(finished)
    runpy.run_path(str(TOOLS / 'compare_runs.py'))['plot']([run], str(tmp_path / 'curves.png'))
    accuracy, loss = (axes.lines[0] for axes in plt.gcf().axes)
    plt.close()
    assert list(accuracy.get_xdata()) == [50, 100]
    assert list(accuracy.get_ydata()) == [run.val[epoch]['accuracy/top1'] for epoch in (1, 2)]
    assert list(loss.get_xdata()) == pytest.approx(list(range(10, 101, 10)))
    # what the student alone is trained with, to compare with
    assert list(loss.get_ydata()) == [run.train[step]['student.loss'] for step in range(1, 11)]
    assert run.train[1]['student.loss'] != run.train[1]['loss']
    alone = Run('alone', tmp_path, train={2: {'loss': 3.0}, 1: {'loss': 4.0}})
    assert list(alone.losses.items()) == [(1, 4.0), (2, 3.0)]


def test_a_run_is_read_as_it_was_logged(finished, tmp_path):
    run = Run.read(finished)
    assert sorted(run.train) == list(range(1, 11))
    assert sorted(run.val) == [1, 2]
    assert run.teacher.keys() == {'accuracy/top1'}
    assert run.seconds == pytest.approx(sum(record['time'] for record in run.train.values()))
    # a resumed run did the second epoch again
    for stamp, value in [('1', 10.0), ('2', 20.0)]:
        file = tmp_path / stamp / 'vis_data/scalars.json'
        file.parent.mkdir(parents=True)
        lines = [{'loss': 1.0, 'time': 0.5, 'step': 4}, {'accuracy/top1': value, 'step': 2}]
        file.write_text('\n'.join(map(json.dumps, lines)))
    again = Run.read(tmp_path)
    assert (again.top1, again.seconds) == (20.0, 2.0)


def test_bad_input(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = finished / 'epoch_2.pth'
    test, export = TOOLS / 'test.py', TOOLS / 'export_student.py'
    fails(test, TINY, 'none.pth', cwd=tmp_path, saying="no checkpoint file at 'none.pth'")
    assert 'no config file' in ends_with(test, 'none.py', checkpoint)
    (tmp_path / 'cut.pth').write_bytes(checkpoint.read_bytes()[:999])
    assert 'not a whole checkpoint' in ends_with(export, TINY, 'cut.pth', 'out.pth')
    assert 'must end in .pth or .safetensors' in ends_with(export, TINY, checkpoint, 'out.bin')
    other = tmp_path / 'other.py'
    other.write_text(
        f"_base_ = '{TINY}'\n"
        'model = dict(architecture=dict(backbone=dict(arch=dict(num_layers=5))))\n'
    )
    assert 'missing: backbone.layers.4' in ends_with(export, other, checkpoint, 'out.pth')
    assert not (tmp_path / 'out.pth').exists()
    assert 'no record of a training' in ends_with(TOOLS / 'compare_runs.py', tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs one GPU per process')
def test_two_processes(tmp_path):
    """dist_train.sh and dist_test.sh, on CPUs; one process writes."""
    import subprocess
    import sys

    env = {
        **os.environ,
        'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}',
        'PYTHONPATH': str(REPO),
        'PORT': str(free_port()),
        'OMP_NUM_THREADS': '1',
    }

    def shell(*args):
        process = subprocess.run(
            ['bash', *map(str, args)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return process.stdout

    options = ['--cfg-options', 'train_cfg.max_epochs=1']
    out = shell(TOOLS / 'dist_train.sh', TINY, 2, *options)
    assert 'Epoch(train) [1][3/3]' in out
    work_dir = tmp_path / 'work_dirs/tiny_distill'
    assert len(list(work_dir.glob('*/vis_data/scalars.json'))) == 1
    out = shell(TOOLS / 'dist_test.sh', TINY, work_dir / 'epoch_1.pth', 2)
    assert f'accuracy/top1: {last_top1(work_dir):.4f}' in out
