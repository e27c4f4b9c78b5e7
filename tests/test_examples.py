"""The examples run, and their students learn."""

import re

import pytest
import torch
from helpers import REPO, call, run_tool

EXAMPLES = REPO / 'examples'


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)


def check(output, folder):
    """Teacher and student know the digits; the file holds this student, and nothing else."""
    import digits

    (teacher,), (student,) = (
        [float(x) for x in re.findall(rf'^{name} ([\d.]+) %', output, re.MULTILINE)]
        for name in ('teacher', 'student')
    )
    assert teacher > 70
    assert student > 50  # a ViT that has seen 5,000 digits; chance is 10
    model = digits.student()
    model.load_state_dict(torch.load(folder / 'student.pth', weights_only=True))
    assert digits.accuracy(model) == pytest.approx(student, abs=0.06)


def test_a_plain_loop(capsys, tmp_path):
    call(EXAMPLES / 'plain_loop.py')
    check(capsys.readouterr().out, tmp_path)


@pytest.mark.slow
def test_mixed_precision_and_compiled(capsys, tmp_path):
    call(EXAMPLES / 'plain_loop.py', '--amp', '--compile')
    check(capsys.readouterr().out, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a GPU for each process')
def test_two_processes(tmp_path):
    process = run_tool(
        '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
        EXAMPLES / 'plain_loop.py', cwd=tmp_path,
    )  # fmt: skip
    check(process.stdout, tmp_path)


@pytest.mark.parametrize('library', ['accelerate', 'lightning'])
def test_with_other_libraries(library, capsys, tmp_path):
    pytest.importorskip(library)
    call(EXAMPLES / f'with_{library}.py')
    check(capsys.readouterr().out, tmp_path)
