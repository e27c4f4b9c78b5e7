import re
import runpy
import sys
from argparse import Namespace
from html.parser import HTMLParser

import pytest
import torch
from helpers import REPO, TINY, ends_with, train
from matplotlib import pyplot as plt

from mmkd_tas.analysis import Measured, MinibatchCKA, pictures, report
from mmkd_tas.analysis.measured import ORDER
from mmkd_tas.commands import analyze as tool
from mmkd_tas.configs import load_config
from mmkd_tas.runs import Run

ANALYZE = REPO / 'tools/analyze.py'


@pytest.fixture(scope='module')
def distilled(tmp_path_factory, tiny_teacher):
    """The work dir of a run of the tiny config with an assistant, and the config in it."""
    folder = tmp_path_factory.mktemp('distilled')
    config = folder / 'config.py'
    config.write_text(
        f"_base_ = ['{TINY}', '{REPO}/configs/_base_/methods/tas.py']\n"
        f"model = dict(teacher_ckpt='{tiny_teacher}', input_size=16,\n"
        '    distiller=dict(_delete_=True, **_base_.distiller))\n'
    )
    train(config, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=1', cwd=folder)
    return folder / 'run', folder / 'run/config.py'


class References(HTMLParser):
    """Collect what a page refers to, and its cells."""

    def __init__(self, text):
        super().__init__()
        self.found, self.cells, self.open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ('script', 'link', 'iframe', 'object')
        self.found += [value for key, value in attrs if key in ('src', 'href', 'srcset', 'data')]
        self.open = tag == 'td'

    def handle_data(self, data):
        if self.open:
            self.cells.append(data)
            self.open = False


def analyze(*args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', list(map(str, [ANALYZE, *args])))
        runpy.run_path(str(ANALYZE), run_name='__main__')


def test_the_report(distilled, tmp_path, monkeypatch, capsys):
    work_dir, config = distilled
    monkeypatch.chdir(tmp_path)
    arguments = ['--before', work_dir, '--images', 300, '--image-index', 796]
    analyze(config, work_dir, *arguments, '--out', 'new/<out>')
    assert 'validation images' in capsys.readouterr().out
    out = tmp_path / 'new/<out>'
    assert {p.name for p in out.iterdir()} == {
        *('report.html', 'cka.png', 'features.png', 'agreement.png')
    }
    text = (out / 'report.html').read_text()
    page = References(text)
    assert len(page.found) == 3
    assert all(source.startswith('data:image/png;base64,iVBOR') for source in page.found)
    assert '://' not in text
    assert 'url(' not in text
    assert '300 of the images in mini-batches of 200' in ' '.join(text.split())
    assert f'that of {work_dir}' in text
    assert 'is no better than the student of' in text  # which it is itself
    # what training and its preflight said
    run = Run.read(work_dir)
    cells = [page.cells[i : i + 3] for i in range(0, 12, 3)]
    assert [row[0] for row in cells] == ['teacher', 'assistant', 'student before', 'student after']
    assert cells[2][1:] == cells[3][1:]
    assert cells[3][1] == f'{run.top1:.1f}'
    assert cells[0][1:] == [f'{run.teacher["accuracy/top1"]:.1f}', '100.0']
    # ten classes with all the images
    rows = [page.cells[i : i + 7] for i in range(12, len(page.cells), 7)]
    assert sorted(row[0] for row in rows) == list('0123456789')
    assert sum(int(row[1]) for row in rows) == 797
    agreements = [float(row[2]) for row in rows]
    assert agreements == sorted(agreements, reverse=True)


def test_with_a_new_student_before(distilled, tmp_path):
    work_dir, config = distilled
    arguments = (config, work_dir / 'epoch_1.pth', '--images', 8)
    found = {'new': (), 'again': (), 'same': ('--before', work_dir)}
    for name, before in found.items():
        analyze(*arguments, *before, '--out', tmp_path / name)
    assert 'is one newly initialised' in (tmp_path / 'new/report.html').read_text()
    new, again, same = ((tmp_path / f'{n}/features.png').read_bytes() for n in found)
    assert new == again != same


@pytest.mark.parametrize(
    ('right', 'before', 'said'),
    [
        ((9, 5, 7), 'runs/alone', ''),
        ((9, 7, 5), None, ''),  # an untrained one, by chance
        ((9, 7, 7), 'runs/alone', 'is no better than the student of runs/alone (70.0 %). What'),
        ((6, 5, 7), None, 'is better than its teacher (60.0 %), which may hold it back. What'),
        ((6, 8, 7), 'a', 'no better than the student of a (80.0 %) and better than its teacher'),
    ],
)
def test_what_is_wrong_is_said(right, before, said):
    """Of ten images, so many are known by teacher, student before and student after."""
    names = ('teacher', 'student before', 'student after')
    labels = torch.zeros(10, dtype=torch.long)
    predictions = {n: (torch.arange(10) >= k).long() for n, k in zip(names, right, strict=True)}
    measured = Measured(labels, predictions, [], MinibatchCKA(), ['a', 'b'])
    found = report.verdict(measured, before)
    assert found == '' if not said else said in found
    assert found.endswith('docs/no-gain.md') == bool(said)


def test_the_classes_of_a_batch_are_mixed(distilled):
    config = load_config(distilled[1])
    loader = tool.load_data(config, Namespace(config='', image_index=0, images=8))
    order = [sample.sample_idx for batch in loader for sample in batch['data_samples']]
    assert order != sorted(order)
    assert sorted(order) == list(range(797))


def test_many_classes_and_names_in_need_of_quotes():
    """The agreement by class as points, and as a table."""
    labels = torch.arange(40).repeat(5)
    predictions = {name: labels.clone() for name in ('teacher', 'student before', 'student after')}
    predictions['student after'][:40:2] = 1
    names = [f'<{i}>' for i in range(40)] + ['absent']
    measured = Measured(labels, predictions, [], MinibatchCKA(), names)
    points = pictures.draw_agreement(measured).axes[0].collections[0]
    plt.close()
    expected = torch.tensor([80.0, 100.0]).repeat(20)
    assert points.get_array()[:40].tolist() == pytest.approx(expected.tolist())
    assert points.get_offsets()[:40, 1].tolist() == pytest.approx(expected.tolist())
    assert points.get_offsets()[:40, 0].tolist() == [100] * 40
    order = pictures.in_order(measured.by_class('student after', 'teacher'))
    assert order == [*range(1, 40, 2), *range(0, 40, 2)]  # without the class without images
    assert '<td>&lt;0&gt;</td><td>80.0</td>' in report.table(['a', 'b'], [(names[0], 80)])


def test_few_classes_as_bars():
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    predictions = {
        'teacher': torch.tensor([0, 0, 1, 1, 1, 0]),
        'student before': labels,
        'student after': torch.tensor([0, 1, 1, 1, 1, 0]),
    }
    measured = Measured(labels, predictions, [], MinibatchCKA(), ['a', 'b'])
    axes = pictures.draw_agreement(measured).axes[0]
    plt.close()
    assert [text.get_text() for text in axes.get_xticklabels()] == ['b', 'a']
    assert [bar.get_height() for bar in axes.patches] == [100, 50]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {
        'accuracy of teacher': [75, 100],
        'accuracy of student before': [100, 100],
        'accuracy of student after': [75, 50],
    }


def test_cka_is_drawn_from_0_to_1():
    cka = MinibatchCKA()
    names = [(m, s) for m in ORDER for s in ('stage4', 'logits')]
    cka.update([torch.randn(20, 5) for _ in names])
    predictions = dict.fromkeys(ORDER, torch.zeros(20))
    figure = pictures.draw_cka(Measured(torch.zeros(20), predictions, names, cka, ['0']))
    plt.close()
    full = cka.compute()
    found = {}
    for axes in figure.axes:
        if axes.images:
            found[axes.get_ylabel(), axes.get_xlabel()] = axes.images[0]
    for row, column, expected in [
        ('teacher', 'student before', full[0:2, 4:6]),
        ('teacher', 'student after', full[0:2, 6:8]),
        ('assistant', 'student after', full[2:4, 6:8]),
        ('teacher', 'assistant', full[0:2, 2:4]),
    ]:
        image = found[row, column]
        assert image.get_clim() == (0, 1)
        assert image.get_array().tolist() == expected.tolist()
    change = found['assistant', 'student'].get_array()
    assert change.tolist() == (full[2:4, 6:8] - full[2:4, 4:6]).tolist()


def test_bad_input(distilled, tmp_path, monkeypatch):
    work_dir, config = distilled
    monkeypatch.chdir(tmp_path)

    def bad(*args, config=config, checkpoint=work_dir):
        return ends_with(ANALYZE, config, checkpoint, '--out', 'out', *args)

    alone = tmp_path / 'alone.py'
    alone.write_text(f"_base_ = '{TINY}'\nmodel = dict(_delete_=True, type='ImageClassifier')\n")
    assert "is 'ImageClassifier'; give the config of a distillation" in bad(config=alone)
    data = REPO / 'configs/_base_/datasets/digits.py'
    assert 'is None; give the config of a distillation' in bad(config=data)
    assert "no config file at 'none.py'" in bad(config='none.py')
    assert "no checkpoint file at 'none.pth'" in bad(checkpoint='none.pth')
    assert 'no whole checkpoint in' in bad(checkpoint=tmp_path)
    # of another method: without an assistant
    assert 'unexpected: ' in bad(config=TINY)
    assert "no checkpoint file at 'none.pth'" in bad('--before', 'none.pth')
    assert '--before: ' in bad('--before', work_dir.parent)
    options = 'model.architecture.backbone.arch.num_layers=5'
    assert 'checkpoint: ' in bad('--cfg-options', options)
    assert 'not between 0 and 796' in bad('--image-index', '797')
    assert 'not between 0 and 796' in bad('--image-index', '-1')
    assert 'at least 4 images, and there are 3 of 797' in bad('--images', '3')
    assert 'in batches of 2' in bad('--cfg-options', 'val_dataloader.batch_size=2')
    assert 'has none' in bad('--cfg-options', 'val_dataloader=None')
    options = 'val_dataloader.dataset.metainfo.classes=[a,b]'
    assert 'has 2 classes and the student 10' in bad('--cfg-options', options)
    assert "has no 'val_dataloadr'" in bad('--cfg-options', 'val_dataloadr.batch_size=2')
    (tmp_path / 'out').write_text('')
    assert re.search("'out': .*exists", bad())
