"""What makes a site of the pages in this folder, beside ``mkdocs.yml``."""

import ast
import html
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Pages from outside of this folder.
PAGES = {
    'index.md': 'README.md',
    'contributing.md': 'CONTRIBUTING.md',
    'changelog.md': 'CHANGELOG.md',
}
API = {
    'Plain loop': 'mmkd_tas.loop',
    'Configs': 'mmkd_tas.configs',
    'Models': 'mmkd_tas.models',
    'Stages': 'mmkd_tas.stages',
    'Hooks': 'mmkd_tas.hooks',
    'Data': 'mmkd_tas.datasets',
    'Export': 'mmkd_tas.export',
    'Errors': 'mmkd_tas.errors',
}
_LINK = re.compile(r'(\]\()(?!\w+:|#)([^)#\s]+)')
_MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Append to the navigation what it does not list, and the API."""
    others = {page.name for page in (ROOT / 'docs').glob('*.md')} - {*config.nav}
    pages = [_api_page(title) for title in API]
    config.nav = [*config.nav, *sorted(others), {'API': pages}, *list(PAGES)[1:]]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made here, and let links lead to where their targets now are."""
    for page, file in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text()))
    linked: set[Path] = set()
    for file in list(files.documentation_pages()):
        folder = ROOT if file.src_uri in PAGES else ROOT / 'docs'

        def moved(match: re.Match, folder: Path = folder) -> str:
            target = (folder / match[2]).resolve().relative_to(ROOT)
            page = next((page for page, name in PAGES.items() if name == str(target)), None)
            if target.parts[0] == 'docs':
                page = str(target.relative_to('docs'))
            elif page is None and (ROOT / target).exists():
                linked.add(target)
                page = f'source/{target}' + '.md' * (target.suffix not in ('.png', '.svg'))
            return match[1] + (page or match[2])

        file.content_string = _LINK.sub(moved, file.content_string)
    for target in linked:
        if target.suffix in ('.png', '.svg'):
            image = File.generated(config, f'source/{target}', abs_src_path=str(ROOT / target))
            files.append(image)
            continue
        page = f'---\nsearch: {{exclude: true}}\n---\n\n# {target.name}\n\n'
        sources = [ROOT / target] if (ROOT / target).is_file() else (ROOT / target).glob('*.py')
        for source in sorted(sources):
            language = source.suffix.strip('.')
            page += (
                f'`{source.relative_to(ROOT)}`\n\n````{language}\n{source.read_text()}\n````\n\n'
            )
        files.append(File.generated(config, f'source/{target}.md', content=page))
    for title, module in API.items():
        objects = ''.join(f'::: {module}.{name}\n\n' for name in _public(module))
        page = f'# {title}\n\n`{module}`\n\n{objects}'
        files.append(File.generated(config, _api_page(title), content=page))


def on_page_content(content: str, **kwargs: Any) -> str:
    """Turn formulas into MathML, which browsers show without a script."""

    def mathml(match: re.Match) -> str:
        # MathML has no space around the names of functions.
        formula = re.sub(r'\\(cos|exp|log|max)(?=[( ])', r'\\,\g<0>', html.unescape(match[2]))
        formula = re.sub(r'\\(cos|exp|log|max)(?= )', r'\g<0>\\,', formula)
        if match[1] == 'span':
            return convert(formula, display='inline')
        return f'<p style="overflow-x: auto">{convert(formula, display="block")}</p>'

    return _MATH.sub(mathml, content)


def _api_page(title: str) -> str:
    return f'api/{title.lower().replace(" ", "-")}.md'


def _public(module: str) -> list[str]:
    """Return what a module offers: ``__all__``, or what it defines without an underscore."""
    path = (ROOT / module.replace('.', '/')).with_suffix('.py')
    file = path if path.is_file() else path.with_suffix('') / '__init__.py'
    tree = ast.parse(file.read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return ast.literal_eval(node.value)
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return [name for name in defined if not name.startswith('_')]


class Docstrings(griffe.Extension):
    """Turn what Sphinx knows in a docstring, and Markdown does not, into Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite a docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r':\w+:`~?([^`]+)`', r'`\1`', obj.docstring.value)
        text = re.sub(r'``', '`', text)
        text = re.sub(r'(^ *)\.\. math:: *((?:.+\n?)+)', _display_math, text, flags=re.M)
        # an example, and a table
        text = re.sub(r'((?:^>>>.*\n?|^\.\.\. .*\n?)+)', r'```python\n\1\n```\n', text, flags=re.M)
        obj.docstring.value = re.sub(
            r'^=+ =+\n(?:.*\n)+?=+ =+\n(?:.*\n)+?=+ =+$', r'```\n\g<0>\n```', text, flags=re.M
        )


def _display_math(match: re.Match) -> str:
    formula = ' '.join(match[2].split())
    return f'{match[1]}$$ {formula} $$\n'
