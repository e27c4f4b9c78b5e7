"""What the records of the benchmarks say is what tables, plots and pages show."""

import argparse
import copy
import itertools
import json
import re
import sys

import mmengine
import pytest
from helpers import REPO, run_tool, sampled
from matplotlib import pyplot as plt

BENCHMARKS = REPO / 'benchmarks'
RESULTS = BENCHMARKS / 'results'
RECORDS = sorted(RESULTS.glob('*.json'))


@pytest.fixture(scope='module', autouse=True)
def scripts():
    """The scripts, imported as they import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield
        for name in ('accuracy', 'metafiles', 'report'):
            sys.modules.pop(name, None)


def planned(name):
    """The trainings of a protocol, as one who runs it gets them."""
    import accuracy

    quick = name.endswith('_quick')
    file = BENCHMARKS / f'protocols/{name.removesuffix("_quick")}.py'
    args = argparse.Namespace(seeds=None, rows=None, directions=None)
    return accuracy.cells(accuracy.read_protocol(file, quick), args)


@pytest.mark.parametrize('file', RECORDS, ids=lambda file: file.stem)
def test_tables_and_pages_are_those_of_the_records(file):
    import report

    record = json.loads(file.read_text())
    assert report.table(record) == file.with_suffix('.md').read_text()
    curves, rules = (RESULTS / f'{file.stem}_{part}.md' for part in ('curves', 'rules'))
    for part, told in ((curves, report.curve_table(record)), (rules, report.rule_table(record))):
        assert told == (part.read_text() if part.is_file() else '')
    pages = ''.join(page.read_text() for page in (REPO / 'docs').glob('*.md'))
    for table in (file.with_suffix('.md'), curves, rules):  # filled in, or linked
        assert not table.is_file() or table.name in pages
    known = {(c.row, c.direction, c.model, c.seed, c.full) for c in planned(file.stem)}
    for run in record['runs']:
        assert (run['row'], run['direction'], run['model'], run['seed'], run['full']) in known
        # of the last epoch, not the best
        assert str(run['epochs']) == list(run['val'])[-1]
        assert run.get('val_top1', run['top1']) == list(run['val'].values())[-1]


def test_pages_are_filled_from_the_records():
    import report

    for page in report.PAGES:
        text = page.read_text()
        assert report.filled(text) == text
        assert report.filled(text.replace('| mean | gain |', '| mean |')) == text


@pytest.mark.parametrize('file', RECORDS, ids=lambda file: file.stem)
def test_the_plots_show_what_the_tables_say(file, tmp_path):
    import report

    record = json.loads(file.read_text())
    teachers, main = report.results(record)
    if main:
        report.plot(record, tmp_path / 'plot.png')
        lines = report.table(record).splitlines()
        head, _, teacher, *lines = [line.strip('|').split('|') for line in lines]
        axes = plt.gcf().axes
        assert len(axes) == len(head) - 3 == len(teachers)
        for column, ax in enumerate(axes, 1):
            assert ax.get_title() == head[column].strip()
            dashed = ax.get_lines()[0].get_xdata()[0]
            points = ax.containers[0].lines[0].get_xdata()
            assert [f'{dashed:.1f}'] == teacher[column].split()[:1]
            assert [f'{x:.1f}' for x in points] == [line[column].split()[0] for line in lines]
        plt.close()
        assert (tmp_path / 'plot.png').is_file()
    known = report.curves(record)
    if known:
        report.plot_curves(record, tmp_path / 'curves.png')
        table = report.curve_table(record)
        parts = table.split('\n\n')
        for (direction, rows), part, ax in zip(known.items(), parts, plt.gcf().axes, strict=True):
            assert ax.get_title() == direction
            assert part.startswith(f'| {direction} (teacher ')
            drawn = {line.get_label(): line for line in ax.get_lines()}
            lines = {row: values for row, values in rows.items() if row in main or not main}
            assert drawn.keys() == {'teacher', *lines}
            cells = {line.split(' | ')[0][2:]: line for line in part.splitlines()[2:]}
            assert cells.keys() == rows.keys()
            for row, values in lines.items():
                assert list(drawn[row].get_xdata()) == list(values)
                shown = re.findall(r'\| (\d+\.\d)', cells[row])
                assert [f'{y:.1f}' for y in drawn[row].get_ydata()] == shown
        plt.close()
        assert (tmp_path / 'curves.png').is_file()


def record_of(lead=8.0, growth=0.4):
    """A record of one direction, with a teacher and a student alone."""
    common = dict(pair='a_b', seed=0, recipe='x', held_out=True)
    teacher = dict(common, row='teacher', direction=None, model='a', epochs=9, full=True)
    teacher |= dict(top1=71.0, val_top1=60 + lead)
    student = dict(common, direction='A -> B', model='b', recipe='y')
    runs = [teacher]
    for row, epochs, top1 in [
        ('student alone', 4, 60),
        ('student alone', 8, 60 + growth),
        ('KD', 2, 50),
        ('KD', 4, 64),
    ]:
        full = epochs == 4
        runs.append(
            dict(student, row=row, epochs=epochs, full=full, top1=top1 - 1.0, val_top1=top1)
        )
    return dict(protocol='p', seeds=1, rules=True, runs=runs)


def test_a_direction_that_keeps_the_rules_is_shown():
    import report

    table = report.table(record_of())
    assert '| KD | 63.0 | 63.0 | +4.0 |' in table
    rules = report.rule_table(record_of())
    assert 'full length, epochs | 4 |' in rules
    assert 'at least 5 points | +8.0 |' in rules
    assert 'less than 1 point | +0.4 |' in rules
    assert 'broken' not in rules
    assert '| KD | 49.0 | 63.0 (+4.0) |  |' in report.curve_table(record_of())
    assert report.curves(record_of())['A -> B'] == {
        'student alone': {4: 59.0, 8: 59.4},
        'KD': {2: 49.0, 4: 63.0},
    }
    one_length = record_of()
    one_length['runs'] = [run for run in one_length['runs'] if run['epochs'] != 2]
    assert report.curves(one_length) == {}  # the student alone twice as long is no curve


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(lead=4.9), '+4.9 (broken)'),
        (dict(growth=1.0), '+1.0 (broken)'),
        ('recipe', 'no (broken)'),
        ('held_out', 'no (broken)'),
        ('longer', 'not run'),
    ],
    ids=str,
)
def test_a_direction_that_breaks_a_rule_is_not_shown(change, told):
    import report

    record = record_of(**change) if isinstance(change, dict) else copy.deepcopy(record_of())
    if change == 'recipe':
        record['runs'][-1]['recipe'] = 'z'
    if change == 'held_out':
        record['runs'][0]['held_out'] = False
    if change == 'longer':
        del record['runs'][2]
    assert report.table(record) == ''
    assert told in report.rule_table(record)
    assert report.results(record) == ({}, {})


@pytest.mark.parametrize(
    'name', ['cifar100_long', 'cifar100_long_quick', 'cifar100_long_methods', 'cifar100_long_val']
)
def test_every_row_has_one_recipe(name):
    """The commands of a direction differ only in what the rows are about."""
    known = planned(name)
    students = [cell for cell in known if cell.row != 'teacher']
    folders = [cell.folder for cell in known]
    assert len({*folders}) == len(folders)
    for direction, cells in itertools.groupby(
        sorted(students, key=lambda cell: cell.direction), key=lambda cell: cell.direction
    ):
        recipes = {}
        cells = list(cells)
        (full,) = {cell.epochs for cell in cells if cell.full}
        for cell in cells:
            kept = [
                option for option in cell.options if not option.startswith(('model.', '--method='))
            ]
            recipes.setdefault((cell.seed, cell.epochs), []).append((cell.row, kept))
        for (_, epochs), found in recipes.items():
            assert all(kept == found[0][1] for _, kept in found)
            assert f'train_cfg.max_epochs={epochs}' in found[0][1]
            assert 'val_dataloader.dataset.split=val' in found[0][1]
        assert 'student alone' in dict(recipes[0, 2 * full]), direction
        assert all(c.epochs <= full for c in cells if c.row != 'student alone'), direction
    # a teacher comes after the one that it is distilled from
    place = {cell.folder: i for i, cell in enumerate(known)}
    assert all(place[cell.teacher] < place[cell.folder] for cell in known if cell.teacher)


@pytest.mark.slow
def test_a_protocol_from_its_trainings_to_its_record(tmp_path):
    """Teacher, distilled teacher, student alone twice as long, KD; and nothing is done twice."""
    options = {'param_scheduler': None, 'train_dataloader.batch_size': 20}
    protocol = tmp_path / 'small.py'
    protocol.write_text(
        f'_base_ = {str(BENCHMARKS / "protocols/rows.py")!r}\n'
        "pairs = {'ViT -> CNN': 'vit-w64_resnet18-w4'}\n"
        'seeds, epochs, test = 1, 2, True\n'
        "rows = ['student alone', 'KD']\n"
        "curves = dict(rows=['KD'], directions=['ViT -> CNN'], epochs=[1])\n"
        f"student = dict(dataset='digits', options={options})\n"
        f"teacher = dict(dataset='digits', options={{'train_cfg.max_epochs': 6, **{options}}})\n"
        "distilled_teachers = {'vit-w64': dict(pair='resnet18-w4_vit-w64', method='kd')}\n"
    )
    args = [BENCHMARKS / 'accuracy.py', protocol, '--work-dir', 'work', '--out', 'out']
    run_tool(*args, '--workers', '1', cwd=tmp_path)
    record = mmengine.load(tmp_path / 'out/small.json')
    found = {(run['row'], run['model'], run['epochs'], run['full']) for run in record['runs']}
    assert found == {
        ('teacher', 'resnet18-w4', 6, True),
        ('teacher', 'vit-w64', 6, True),
        ('student alone', 'resnet18-w4', 2, True),
        ('student alone', 'resnet18-w4', 4, False),
        ('KD', 'resnet18-w4', 2, True),
        ('KD', 'resnet18-w4', 1, False),
    }
    scored = {str(file.parent): mmengine.load(file) for file in tmp_path.rglob('test.json')}
    for run in record['runs']:
        folder = run['command'].rpartition('--work-dir=work_dirs/accuracy/')[2].rstrip("'")
        assert run['top1'] == round(scored[str(tmp_path / 'work' / folder)]['accuracy/top1'], 2)
    stamps = {file: file.stat().st_mtime for file in (tmp_path / 'work').rglob('*.pth')}
    run_tool(*args, cwd=tmp_path)
    assert {file: file.stat().st_mtime for file in (tmp_path / 'work').rglob('*.pth')} == stamps
    assert mmengine.load(tmp_path / 'out/small.json') == record
    # digits have no validation split of their own
    assert 'no (broken)' in (tmp_path / 'out/small_rules.md').read_text()


ENTRIES = {
    entry['Name']: entry
    for file in mmengine.load(REPO / 'model-index.yml')['Import']
    for entry in mmengine.load(REPO / file)['Models']
}


@pytest.mark.parametrize('name', sampled([*ENTRIES], lambda i, n: 'digits' in n or i == 9))
def test_the_metafiles_say_what_models_cost_and_records_show(name):
    import metafiles

    entry = ENTRIES[name]
    bare = {key: entry['Metadata'][key] for key in ('Teacher', 'Student', 'Training Data')}
    assert metafiles.completed({**entry, 'Metadata': bare}) == entry
    assert ('Results' in entry) == ('digits' in name)
