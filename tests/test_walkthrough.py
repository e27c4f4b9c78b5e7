"""The commands of docs/your-own.md, in their order."""

import glob
import re
import shlex

import pytest
import torch
from helpers import REPO, call
from matplotlib import pyplot as plt

from mmkd_tas.commands import main

PAGE = REPO / 'docs/your-own.md'
# Enough to see that everything runs: fewer images and epochs.
QUICK = {
    'i < 1000': 'i < 1700',
    'range(40)': 'range(8)',
    'range(100)': 'range(1)',
    'max_epochs=100': 'max_epochs=2',
    'val_interval=25': 'val_interval=1',
    'end=10': 'end=1',
    'begin=10': 'begin=1',
}


def walk(folder, changes):
    """Write each file that the page shows, and run each command."""
    page = PAGE.read_text()
    for language, block in re.findall(r'```(python|bash)\n(.*?)```', page, re.DOTALL):
        for old, new in changes.items():
            assert old in page
            block = block.replace(old, new)
        if language == 'python':
            name = re.match(r'# (\w+\.py)\n', block)[1]
            (folder / name).write_text(block)
            continue
        for command in block.splitlines():
            program, *arguments = shlex.split(command)
            arguments = [n for part in arguments for n in sorted(glob.glob(part)) or [part]]
            if program == 'mmkd-tas':
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr('sys.argv', [program, *arguments])
                    main()
            else:
                assert program == 'python'
                call(*arguments)
            plt.close('all')


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(text):
    """Return the rows of the table of `mmkd-tas compare` by their label."""
    rows = [line.split('│')[1:-1] for line in text.splitlines() if line.startswith('│')]
    return {label.strip(): [cell.strip() for cell in cells] for label, *cells in rows}


def test_the_walkthrough_runs(there, capsys):
    walk(there, QUICK)
    shown = capsys.readouterr().out
    rows = figures(shown)
    assert rows.keys() == {'alone', 'rsd'}
    assert rows['alone'][0] == rows['rsd'][0] == '2'
    assert re.fullmatch(r'[+-]\d+\.\d\d', rows['rsd'][2])
    assert float(rows['rsd'][3]) > 20  # the teacher, on its own images
    assert 'differ in' not in shown
    (log,) = there.glob('runs/rsd-0/*/*.log')
    assert "teacher sees 32 px, mean 127.5, std 127.5 (mean and std from timm's" in log.read_text()
    assert (there / 'curves.png').is_file()
    assert re.search(r'^student: [\d.]+ %$', shown, re.MULTILINE)
    assert all(v.isfinite().all() for v in torch.load(there / 'student.pth').values())


@pytest.mark.slow
def test_the_student_gets_better(there, capsys):
    """As the page says: what is printed depends a little on the machine."""
    walk(there, {})
    found, told = figures(capsys.readouterr().out), figures(PAGE.read_text())
    assert found.keys() == told.keys() == {'alone', 'rsd'}
    assert float(found['rsd'][3]) == pytest.approx(float(told['rsd'][3]), abs=3)
    for rows in (found, told):
        assert float(rows['rsd'][2]) > 10
        gain = float(rows['rsd'][1].split()[0]) - float(rows['alone'][1].split()[0])
        assert gain == pytest.approx(float(rows['rsd'][2]), abs=0.011)
