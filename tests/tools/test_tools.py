"""Testing, exporting and comparing, on one run of the tiny config."""

import json
import os
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

from mmkd_tas.commands.compare import plot
from mmkd_tas.runs import Run, grouped

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


@pytest.mark.slow
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


def test_compare_runs(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(TOOLS / 'compare_runs.py', f'mine={finished}', finished, '--out', 'curves.png')
    plt.close()
    shown = capsys.readouterr().out
    student = Config.fromfile(TINY).model.architecture
    parameters = sum(p.numel() for p in mmengine.registry.MODELS.build(student).parameters())
    for text in ('mine', 'run', f'{last_top1(finished):.2f}', f'{parameters:,}'):
        assert text in shown
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def recorded(folder, top1, teacher=None, seed=0, method='kd', **changes):
    """Write what a training leaves: its config, and what was logged of its last epoch."""
    config = Config.fromfile(TINY)
    base = Config.fromfile(REPO / f'configs/_base_/methods/{method or "kd"}.py')
    config.model.distiller = base.distiller
    if method is None:
        config.model = config.model.architecture
    config.merge_from_dict({'randomness.seed': seed, 'work_dir': str(folder), **changes})
    lines = [{'loss': 1.0, 'time': 0.5, 'step': 15}, {'accuracy/top1': top1, 'step': 3}]
    if teacher is not None:
        lines.append({'teacher/accuracy/top1': teacher, 'step': 0})
    log = folder / 'now/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(map(json.dumps, lines)))
    config.dump(folder / 'config.py')
    return folder


def compared(capsys, *folders):
    """The rows of the table by their label, and the lines below it."""
    call(TOOLS / 'compare_runs.py', *folders)
    lines = capsys.readouterr().out.splitlines()
    table = [line.split('│')[1:-1] for line in lines if line.startswith('│')]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:5]] for cells in table}
    return rows, [line for line in lines if line.startswith(('- ', 'What'))]


def test_seeds_are_one_row_with_gain_and_teacher(tmp_path, capsys):
    runs = [recorded(tmp_path / f'alone-{i}', 50 + i, None, i, None) for i in range(3)]
    runs += [recorded(tmp_path / f'tas_seed{i}', 60 + i, 80, 10 + i, 'tas') for i in range(3)]
    runs += [recorded(tmp_path / f'kd/{i}', 55.5, 80, i) for i in range(2)]
    rows, notes = compared(capsys, *runs)
    assert rows == {
        'alone': ['3', '51.00 ± 1.00', '-', '-'],
        'tas': ['3', '61.00 ± 1.00', '+10.00', '80.00'],
        'kd': ['2', '55.50 ± 0.00', '+4.50', '80.00'],
    }
    assert notes == []


def test_what_is_wrong_is_said(tmp_path, capsys):
    alone = recorded(tmp_path / 'alone', 66, method=None)
    kd = recorded(tmp_path / 'kd', 67, 70)
    tas = recorded(tmp_path / 'tas', 62, 70, method='tas')
    teacher = 'the teacher of {} (70.00 %) is not 5 points better than the student alone (66.00 %)'
    little = ', and so has little to teach'
    link = 'What to try: docs/no-gain.md'
    _, notes = compared(capsys, alone, kd, tas)
    assert notes == [
        '- ' + teacher.format('kd') + little,
        '- tas: worse than the student alone, 62.00 % against 66.00 % (alone)',
        '- ' + teacher.format('tas') + little,
        '- tas: worse than plain KD, 62.00 % against 67.00 % (kd)',
        link,
    ]
    # other seeds, in whose spread the difference is lost
    again = [recorded(tmp_path / f'again{i}', 66 + 4 * i, 90, i, 'tas') for i in range(2)]
    _, notes = compared(capsys, alone, recorded(tmp_path / 'alone2', 68, None, 1, None), *again)
    assert notes == [
        '- again: no clear difference from the student alone, 68.00 % against 67.00 % (alone): the '
        'gain, 1.00 points, has a standard error of 2.24 over the seeds',
        link,
    ]
    # with nothing to compare with, and what is not to be compared
    _, (note,) = compared(capsys, kd)
    assert 'there is no run of the student alone to compare kd with' in note
    longer = {'train_cfg.max_epochs': 9, 'val_dataloader.num_workers': 2}
    other = recorded(tmp_path / 'longer', 60, method=None, **longer)
    rows, notes = compared(capsys, other, recorded(tmp_path / 'rsd', 40, 90, method='rsd'))
    assert rows['rsd'][2] == '-20.00'
    assert notes == [
        '- longer: epoch 3 of 9, not finished',
        '- rsd and longer differ in train_cfg too, so that the gain is not due to the teacher '
        'alone',
    ]


def test_the_most_alike_is_compared_with(tmp_path, capsys):
    """Not another student, other data or another recipe, where there is a better choice."""
    kd = recorded(tmp_path / 'kd', 50, 90)
    others = {
        'rate': ({'optim_wrapper.optimizer.lr': 0.5}, 10),
        'alone': ({}, 20),
        'wider': ({'model.head.in_channels': 32}, 30),
        'images': ({'val_dataloader.dataset.split': 'train'}, 40),
    }
    others = {
        name: recorded(tmp_path / name, top1, method=None, **changes)
        for name, (changes, top1) in others.items()
    }
    rows, _ = compared(capsys, kd, *others.values())
    assert rows['kd'][2] == '+30.00'
    # nor the teacher, where it is of the same kind
    kd = recorded(tmp_path / 'same', 50, 90, **{'model.teacher_ckpt': str(others['alone'])})
    rows, _ = compared(capsys, kd, *others.values())
    assert rows['same'][2] == '+40.00'
    rows, _ = compared(capsys, kd, others['wider'], others['images'])
    assert rows['same'][2] == '-'


def test_the_curves(finished, tmp_path):
    run = Run.read(finished)
    plot(grouped([run]), str(tmp_path / 'curves.png'))
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
    assert 'there is no training log' in ends_with(TOOLS / 'compare_runs.py', tmp_path)


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
