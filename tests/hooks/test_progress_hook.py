import os
import pty
import re
import subprocess
import sys

from helpers import REPO, TINY, train


def on_a_terminal(*args, cwd):
    """Run the training tool on a pseudo-terminal; return what it shows."""
    ours, theirs = pty.openpty()
    env = dict(os.environ, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1', COLUMNS='160', TERM='xterm')
    process = subprocess.Popen(
        [sys.executable, str(REPO / 'tools/train.py'), *map(str, args)],
        cwd=cwd,
        env=env,
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


def test_a_bar_in_place_of_the_lines_on_a_terminal(tmp_path):
    code, shown = on_a_terminal(TINY, '--work-dir=on', cwd=tmp_path)
    assert code == 0, shown[-2000:]
    train(TINY, '--work-dir=off', cwd=tmp_path)
    plain = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', shown)
    assert 'Epoch(train)' not in plain
    last = plain[plain.rindex('epoch 3/3') :]
    assert '100 %' in last
    assert re.search(r'student \d+\.\d\d %', last)
    assert re.search(r'loss [\d.]+ \(student [\d.]+ kd [\d.]+\)', plain)
    assert re.search(r'validation \d/4', plain)
    assert shown.rindex('\x1b[?25h') > shown.rindex('\x1b[?25l')  # the cursor is back
    # The log file does not know of the bar.
    assert len(logged(tmp_path / 'on')) == len(logged(tmp_path / 'off')) >= 18


def test_not_on_a_terminal(tmp_path):
    process = train(TINY, cwd=tmp_path)
    assert process.stdout.count('Epoch(train)') == 15
    assert '━' not in process.stdout


def test_the_cursor_is_given_back_when_the_run_fails(tmp_path):
    options = ['--cfg-options', 'optim_wrapper.optimizer.lr=1e30', 'param_scheduler=None']
    code, shown = on_a_terminal(TINY, *options, cwd=tmp_path)
    assert code == 1
    assert 'error: ' in shown
    assert shown.rindex('\x1b[?25h') > shown.rindex('\x1b[?25l')
