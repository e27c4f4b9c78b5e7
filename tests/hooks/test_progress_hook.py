import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from helpers import REPO, TINY, environment, train

from mmkd_tas.runs import Run


def on_a_terminal(*args, cwd, columns=160):
    """Run the training tool on a pseudo-terminal; return what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    env = environment(TERM='xterm')
    env.pop('COLUMNS', None)
    process = subprocess.Popen(
        [sys.executable, str(REPO / 'tools/train.py'), *map(str, args)],
        cwd=cwd,
        env=env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b''
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other side is closed
        pass
    process.wait(timeout=60)
    os.close(ours)
    return process.returncode, shown.decode(errors='replace')


def logged(folder):
    (log,) = folder.glob('*/*.log')
    return [line for line in log.read_text().splitlines() if 'Epoch(' in line]


def plain(shown):
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', shown)


def test_a_bar_in_place_of_the_lines_on_a_terminal(tmp_path):
    code, shown = on_a_terminal(TINY, '--work-dir=on', cwd=tmp_path)
    assert code == 0, shown[-2000:]
    text = plain(shown)
    assert 'Epoch(train)' not in text
    assert re.search(r'loss [\d.]+ \(student [\d.]+ kd [\d.]+\)', text)
    assert re.search(r'validation \d/4', text)
    assert shown.rindex('\x1b[?25h') > shown.rindex('\x1b[?25l')  # the cursor is back
    # The log file does not know of the bar: steps, batches of the validation, and its results.
    assert len(logged(tmp_path / 'on')) == 15 + 12 + 3


def test_80_columns_are_enough_and_the_last_accuracy_stays(tmp_path):
    # more losses than there is room for, and a validation at the end only
    options = ['train_cfg.val_interval=3', 'model.distiller.distill_losses.loss_kd.loss_weight=2']
    code, shown = on_a_terminal(
        TINY, '--work-dir=on', '--cfg-options', *options, cwd=tmp_path, columns=80
    )
    assert code == 0, shown[-2000:]
    frames = [line for line in re.split(r'[\r\n]+', plain(shown)) if '━' in line]
    assert any('loss' in frame for frame in frames)
    for frame in frames:
        assert len(frame) <= 80
        assert re.match(r'epoch [1-3]/3 [━╸╺ ]{8} +\d+ % 0:00:\d\d left [-:\d]{7} ', frame), frame
    top1 = Run.read(tmp_path / 'on').top1
    assert re.search(rf'^epoch 3/3 .* 100 % .* student {top1:.2f} %', frames[-1]), frames[-1]


def test_not_on_a_terminal(tmp_path):
    options = ['optim_wrapper.paramwise_cfg.norm_decay_mult=0']
    process = train(TINY, '--cfg-options', *options, cwd=tmp_path)
    assert process.stdout.count('Epoch(train)') == 15
    assert '━' not in process.stdout
    # what is long is in the file
    lines = process.stdout.splitlines()
    assert next(i for i, line in enumerate(lines) if 'Epoch(train)' in line) < 20
    assert 'paramwise_options' not in process.stdout
    assert 'Config: ' in process.stdout  # where it is
    (log,) = (tmp_path / 'work_dirs/tiny_distill').glob('*/*.log')
    text = log.read_text()
    assert 'paramwise_options -- architecture' in text
    assert "type='mmkd_tas.CrossArchDistill'" in text
    assert 'PyTorch compiling details' in text


def test_the_cursor_is_given_back_when_the_run_fails(tmp_path):
    options = ['--cfg-options', 'optim_wrapper.optimizer.lr=1e30', 'param_scheduler=None']
    code, shown = on_a_terminal(TINY, *options, cwd=tmp_path)
    assert code == 1
    assert 'error: ' in shown
    assert shown.rindex('\x1b[?25h') > shown.rindex('\x1b[?25l')
