import os
import re
import signal

import pytest
import torch
from helpers import (
    REPO,
    TINY,
    call,
    ends_with,
    fails,
    run_tool,
    same,
    sampled,
    train,
    with_hooks,
)

from mmkd_tas.checkpoint import read_checkpoint

TRAIN = REPO / 'tools/train.py'


KILLED = [('tas', 2), ('kd', 2), ('ofa', 0)]


@pytest.mark.parametrize(('method', 'workers'), sampled(KILLED, lambda i, _: i == 0))
def test_killed_and_resumed_equals_uninterrupted(tmp_path, tiny_teacher, method, workers):
    options = ['--cfg-options', f'train_dataloader.num_workers={workers}', 'randomness.seed=3']
    orders = {}
    for name, kill in [('whole', []), ('killed', [dict(type='KillHook', epoch=2, step=3)])]:
        folder = tmp_path / name
        folder.mkdir()
        orders[name] = folder / 'order.txt'
        order = dict(type='OrderHook', file=str(orders[name]))
        config = with_hooks(folder, tiny_teacher, method, order, *kill)
        process = train(config, *options, cwd=folder, ok=not kill)
        if kill:
            assert process.returncode == -signal.SIGKILL
            assert read_checkpoint(folder / 'work_dirs/config/epoch_1.pth')['meta']['epoch'] == 1
            interrupted = orders[name].read_text().splitlines()
            assert len(interrupted) == 5 + 3  # recorded before the kill
            orders[name].unlink()
            # without a seed in the config: it comes from the checkpoint
            config = with_hooks(folder, tiny_teacher, method, order)
            train(config, '--resume', *options[:-1], 'randomness.seed=None', cwd=folder)
    whole = orders['whole'].read_text().splitlines()
    assert len({line.split(' ', 1)[1] for line in whole}) == 15  # no two steps alike
    assert interrupted == whole[:8]
    assert orders['killed'].read_text().splitlines() == whole[5:]
    expected, resumed = (
        read_checkpoint(tmp_path / name / 'work_dirs/config/epoch_3.pth')
        for name in ('whole', 'killed')
    )
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert same(expected[part], resumed[part]), part


# Counts how often a tool opens each checkpoint.
COUNTED = """
import collections, os, runpy, sys
opened = collections.Counter()
def count(event, args):
    if event == 'open' and str(args[0]).endswith('.pth') and 'r' in str(args[1]):
        opened[os.path.basename(args[0])] += 1
sys.addaudithook(count)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
print('OPENED', dict(opened))
"""


WAYS = ['newest', 'resume', 'load_from']


@pytest.mark.parametrize('way', sampled(WAYS, lambda i, _: i == 0))
def test_a_checkpoint_is_read_once(tmp_path, way):
    options = ['--work-dir', tmp_path, '--no-validate', '--cfg-options']
    call(TRAIN, TINY, *options, 'train_cfg.max_epochs=1')
    start = tmp_path / 'epoch_1.pth'
    ways = dict(newest=['--resume'], resume=['--resume', start], load_from=[])
    keys = [f'load_from={start}'] if way == 'load_from' else []
    (tmp_path / 'count.py').write_text(COUNTED)
    args = [TRAIN, TINY, *ways[way], *options, 'train_cfg.max_epochs=2', *keys]
    process = run_tool(tmp_path / 'count.py', *args, cwd=tmp_path)
    assert process.stdout.splitlines()[-1] == "OPENED {'epoch_1.pth': 1}"
    assert f'Load checkpoint from {start}' in process.stdout + process.stderr


def test_a_finished_run_is_left_alone(tmp_path):
    train(TINY, cwd=tmp_path)
    checkpoint = tmp_path / 'work_dirs/tiny_distill/epoch_3.pth'
    before = checkpoint.stat().st_mtime_ns
    process = train(TINY, '--resume', cwd=tmp_path)
    assert 'already trained for 3 epochs' in process.stdout
    assert checkpoint.stat().st_mtime_ns == before
    # no half-written files, and nothing of the teacher in what is whole
    assert [p.name for p in checkpoint.parent.glob('.*')] == []


def test_options(tmp_path):
    process = train(
        TINY,
        *('--work-dir', 'here', '--amp', '--auto-scale-lr', '--no-validate', '--resume', 'auto'),
        *('--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=10'),
        cwd=tmp_path,
    )
    output = process.stdout
    assert (tmp_path / 'here/epoch_1.pth').is_file()
    (log,) = (tmp_path / 'here').glob('*/*.log')
    assert "type='AmpOptimWrapper'" in log.read_text()
    assert 'LR is set based on batch size of 16' in output
    assert 'Epoch(val)' not in output
    assert re.search(r'student [\d,]+, teacher [\d,]+ \(frozen\), extra modules 0', output)


def test_bad_input(tmp_path, monkeypatch):
    def bad(*args, saying):
        sentence = ends_with(TRAIN, *args)
        assert all(part in sentence for part in saying)

    monkeypatch.chdir(tmp_path)
    fails(TRAIN, 'none.py', cwd=tmp_path, saying=["there is no config file at 'none.py'"])
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(')
    bad(broken, saying=['broken.py', 'SyntaxError'])
    bad(TINY, '--resume', saying=["no whole checkpoint in 'work_dirs/tiny_distill'"])
    bad(TINY, '--resume', tmp_path, saying=['no whole checkpoint'])
    bad(TINY, '--resume', 'none.pth', saying=["no checkpoint file at 'none.pth'"])
    bad(TINY, '--work-dir', broken / 'sub', saying=['Not a directory'])
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize(
    ('option', 'saying'),
    [
        ('optim_wraper.optimizer.lr=1', "did you mean 'optim_wrapper'?"),
        ('train_cfg.max_epoch=1', "did you mean 'max_epochs'"),
        ('default_hooks.finite_los=None', "did you mean 'finite_loss'?"),
        ('default_hooks.finite_loss.action=x', "action='x' is neither"),
        ('default_hooks.checkpoin.interval=1', "did you mean 'checkpoint'?"),
        ('model.architecture.head.typ=x', "takes no argument 'typ'"),
        ('train_dataloader.dataset.pipeline.7.type=x', "pipeline' is a list of 3"),
        (
            'model.distiller.type=mmkd_tas.Distill',
            "model.distiller.type: unknown type 'mmkd_tas.Distill'",
        ),
        ('train_dataloader.dataset.type=Digit', 'did you mean mmkd_tas.Digits'),
        ('optim_wrapper.optimizer.type=AdmW', 'or mmengine.AdamW'),
        ('train_dataloader.dataset.num_train=7', 'num_train must be a multiple of 10'),
        ('model.architecture.head.num_classes=9', '9 classes'),
        ('model.teacher_input.sizes=3', "unknown keys ['sizes']"),
        ('model.teacher_trainable=True', 'keeps its teacher frozen'),
    ],
)
def test_bad_option(tmp_path, monkeypatch, option, saying):
    monkeypatch.chdir(tmp_path)
    assert saying in ends_with(TRAIN, TINY, '--cfg-options', option)
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize(
    ('folder', 'saying'),
    [('none', 'No such file or directory'), ('empty', 'no images in the sub-folders of')],
)
def test_absent_or_empty_data_folder(tmp_path, monkeypatch, folder, saying):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty/cat').mkdir(parents=True)
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{TINY}'\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', "
        f"data_root='{folder}', pipeline=[dict(type='PackInputs')]))\n"
    )
    message = ends_with(TRAIN, config)
    assert folder in message
    assert saying in message


def test_bad_teacher_checkpoints(tmp_path, monkeypatch, tiny_teacher):
    """What the command line says; tests/test_checkpoint.py has the details."""
    monkeypatch.chdir(tmp_path)
    whole = tiny_teacher.read_bytes()
    (tmp_path / 'cut.pth').write_bytes(whole[: len(whole) // 2])
    torch.save({'state_dict': Evil()}, tmp_path / 'evil.pth')
    for file, saying in [
        ('none.pth', "there is no checkpoint file at 'none.pth'"),
        ('cut.pth', 'not a whole checkpoint'),
        ('evil.pth', 'is refused: it wants to call'),
    ]:
        message = ends_with(TRAIN, TINY, '--cfg-options', f'model.teacher_ckpt={file}')
        assert saying in message
    options = [f'model.teacher_ckpt={tiny_teacher}', 'model.teacher.head.num_classes=7']
    assert 'trained for 10 classes' in ends_with(TRAIN, TINY, '--cfg-options', *options)
    options[1] = 'model.teacher.backbone.depth=34'
    assert 'another architecture' in ends_with(TRAIN, TINY, '--cfg-options', *options)
    assert not (tmp_path / 'mark').exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ('mark',)
