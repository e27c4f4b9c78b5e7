"""What the source as a whole keeps to."""

import ast
import re

import pytest
import yaml
from helpers import REPO

SOURCES = {
    str(file.relative_to(REPO)): file.read_text()
    for folder in ('mmkd_tas', 'tools')
    for file in sorted((REPO / folder).rglob('*.py'))
    if 'configs' not in file.parts
}
ALARM = 6  # lines


def bodies(node):
    """Return the lines of each function in one form, without signature, docstring and comments."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            documented = ast.get_docstring(part) is not None
            yield ast.unparse(ast.Module(part.body[documented:], [])).splitlines()
        elif isinstance(part, ast.ClassDef):
            yield from bodies(part)


def repeated(sources):
    """Return the blocks of some lines that are in two functions, or twice in one."""
    seen, found = {}, []
    for file, source in sources.items():
        for lines in bodies(ast.parse(source)):
            for start in range(len(lines) - ALARM + 1):
                block = '\n'.join(line.strip() for line in lines[start : start + ALARM])
                if block in seen:
                    found.append(f'{seen[block]} and {file}:\n{block}')
                seen.setdefault(block, file)
    return found


def test_nothing_is_said_twice():
    found = repeated(SOURCES)
    assert not found, '\n\n'.join(found)


@pytest.mark.parametrize(('change', 'alarms'), [('', True), ('x = 1', True), ('return 1', False)])
def test_a_copy_raises_the_alarm(change, alarms):
    """Also a copy that is laid out otherwise, and one among other lines."""
    lines = [f'y{i} = f({i}, a=[1,   2])  # {i}' for i in range(ALARM)]
    if change.startswith('return'):
        lines[3] = change
    copy = [change, *(line.partition('#')[0] for line in lines)] if change == 'x = 1' else lines
    own = [f'y{i} = f(\n        {i},\n        a=[1, 2])' for i in range(ALARM)]
    functions = [
        f'def {name}():\n    """{name}"""\n    ' + '\n    '.join(filter(None, body)) + '\n'
        for name, body in (('one', own), ('two', copy))
    ]
    assert bool(repeated(dict(enumerate(functions)))) == alarms


def test_pre_commit_has_the_versions_of_ci():
    pinned = dict(re.findall(r'^([\w-]+)==([\w.]+)', (REPO / 'constraints.txt').read_text(), re.M))
    config = yaml.safe_load((REPO / '.pre-commit-config.yaml').read_text())
    for hook in config['repos'][0]['hooks']:
        for package, version in (d.split('==') for d in hook['additional_dependencies']):
            assert version == pinned[package]
