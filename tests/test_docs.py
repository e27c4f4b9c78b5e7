"""What the documents show works as it stands there."""

import argparse
import fnmatch
import inspect
import itertools
import re
import runpy
import shutil
import sys
from pathlib import Path

import pairs
import pytest
import test_methods
import timm
import torch
from helpers import REPO
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain import get_model
from mmpretrain.structures import DataSample
from pairs import batch, distillation

from mmkd_tas import cli, configs, models
from mmkd_tas.models import CrossArchDistill, losses
from mmkd_tas.registry import MODELS as OWN_MODELS

PAGES = (REPO / 'README.md', *sorted((REPO / 'docs').glob('*.md')))


def blocks(file, language):
    return re.findall(rf'```{language}\n(.*?)```', (REPO / file).read_text(), re.DOTALL)


def test_adding_a_teacher_to_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student = dict(type='TimmClassifier', model_name='resnet18', num_classes=100)
    (tmp_path / 'my_config.py').write_text(f'model = dict({student})\n')
    snippet, _ = blocks('README.md', 'python')
    assert len(snippet.splitlines()) <= 12
    (tmp_path / 'config.py').write_text(snippet.replace('/path/to/mmkd_tas', str(REPO)))
    config = Config.fromfile(tmp_path / 'config.py')
    teacher = MODELS.build(config.model.teacher)
    torch.save(teacher.state_dict(), tmp_path / config.model.teacher_ckpt)
    model = MODELS.build(config.model)
    assert isinstance(model, CrossArchDistill)
    samples = [DataSample().set_gt_label(i) for i in range(2)]
    losses = model(torch.randn(2, 3, 32, 32), samples, mode='loss')
    assert losses['distill.loss_ta_features'].isfinite()


def test_a_loop_of_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, snippet = blocks('README.md', 'python')
    student = timm.create_model('test_resnet', num_classes=10)
    teacher = timm.create_model('test_vit', num_classes=10, img_size=32)
    loader = [(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))]
    space = dict(student=student, teacher=teacher, loader=loader, torch=torch)
    exec(snippet.replace('224', '32'), space)
    assert {'student.loss', 'distill.loss_ts_logits'} <= space['losses'].keys()
    saved = torch.load('student.pth', weights_only=True)
    timm.create_model('test_resnet', num_classes=10).load_state_dict(saved)


def test_a_connector_of_your_own():
    _, _, snippet = blocks('docs/stages.md', 'python')
    exec(snippet, {'torch': torch})
    options = {
        'connectors': dict(mean=dict(type='MeanToken')),
        'distill_losses.loss_mean': dict(type='mmrazor.L2Loss'),
        'loss_forward_mappings.loss_mean': dict(s_feature='mean', t_feature='teacher.pooled'),
    }
    model = distillation('kd', 'resnet', 'mlp_mixer', options)
    assert model(*batch(model), mode='loss')['distill.loss_mean'].isfinite()


def test_stages_as_references():
    snippet = blocks('docs/stages.md', 'python')[0]
    space = {}
    exec(snippet, space)
    model = distillation('kd', 'resnet', 'resnet')
    model = MODELS.build(
        dict(
            type='mmkd_tas.CrossArchDistill',
            architecture=model.student,
            teacher=model.teacher,
            input_size=64,
            distiller=space['distiller'],
        )
    )
    assert model(*batch(model), mode='loss')['distill.loss_l2'].isfinite()


@pytest.mark.parametrize('file', PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    for target in re.findall(r'\]\((?!http)([^)#]+)', file.read_text()):
        assert (file.parent / target).exists(), target


# What the file of a model of MMPretrain and of timm is called there.
PUBLISHED = {
    'convnext-t': 'convnext-tiny_32xb128_in1k',
    'deit-s': 'deit-small_4xb256_in1k',
    'deit-t': 'deit-tiny_4xb256_in1k',
    'mixer-b16': 'mlp-mixer-base-p16_3rdparty_64xb64_in1k',
    'mobilenetv2': 'mobilenet-v2_8xb32_in1k',
    'resnet18': 'resnet18_8xb32_in1k',
    'resnet34': 'resnet34_8xb32_in1k',
    'resnet50': 'resnet50_8xb32_in1k',
    'swin-t': 'swin-tiny_16xb64_in1k',
    'vit-s': 'vit_small_patch16_224',
    'vit-b': 'vit_base_patch16_224',
    'resmlp-s12': 'resmlp_12_224',
    'resnet50-stronger': 'resnet50',
}


def shapes(model):
    return {key.removeprefix('model.'): value.shape for key, value in model.state_dict().items()}


@pytest.mark.slow
def test_which_file_fits_which_model():
    """The models that docs/configs.md lists have the layouts of what the libraries publish."""
    text = (REPO / 'docs/configs.md').read_text()
    rows = [
        re.search(rf'^\| {library} \|(.*?)[;|]', text, re.MULTILINE)[1]
        for library in ("MMPretrain's, of ImageNet", "timm's")
    ]
    ours, timms = (re.findall('`(.*?)`', row) for row in rows)
    assert {*ours, *timms} == PUBLISHED.keys()
    for name in (*ours, *timms):
        (file,) = (REPO / 'configs/_base_/models').glob(f'*/{name}.py')
        cfg = Config.fromfile(file)[name.replace('-', '_')]
        configs.set_num_classes(cfg, 1000)
        theirs = timm.create_model if name in timms else get_model
        assert shapes(MODELS.build(cfg)) == shapes(theirs(PUBLISHED[name])), name


def spelled_out(option):
    """Return the options that one with alternatives in braces stands for."""
    parts = re.split(r'\{([^}]*)\}', option)
    choices = [part.split(',') if i % 2 else [part] for i, part in enumerate(parts)]
    return [''.join(choice) for choice in itertools.product(*choices)]


def test_options_of_the_methods_exist():
    """Every option that docs/methods.md lists is an argument of what a method builds."""
    text = (REPO / 'docs/methods.md').read_text()
    parts = {}
    for file in (REPO / 'configs/_base_/methods').glob('*.py'):
        assert f'`{file.name}`' in text
        distiller = Config.fromfile(file).distiller
        for section in ('connectors', 'distill_losses'):
            for name, cfg in distiller.get(section, {}).items():
                arguments = {*inspect.signature(MODELS.get(cfg.type)).parameters, 'inputs'}
                parts.setdefault(f'{section}.{name}', set()).update(arguments)
    listed = re.findall(r'\| `((?:connectors|distill_losses)\.[^`]+)` \|', text)
    assert len(listed) > 20
    for option in itertools.chain.from_iterable(map(spelled_out, listed)):
        owner, _, argument = option.rpartition('.')
        owners = fnmatch.filter(parts, owner)
        assert any(argument in parts[name] for name in owners), option


def test_the_baselines_of_other_tables():
    """The options for them are those of OFA-KD's code, where T = 1 and all else has weight 1."""
    parser = argparse.ArgumentParser()
    cli.add_run_arguments(parser)
    losses = {}
    (block,) = blocks('docs/methods.md', 'bash')
    for line in block.splitlines():
        cell = ['--dataset=digits', '--pair=resnet18-w4_vit-w64', *line.split()]
        config = cli.load_config(parser.parse_args(cell))
        losses.update(config.model.distiller.distill_losses.to_dict())
    theirs = dict(
        loss_kd=dict(tau=1, loss_weight=1),
        loss_dkd=dict(tau=1, alpha=1, beta=2, loss_weight=1),
        loss_dist=dict(tau=1, loss_weight=1),
    )
    for loss in losses.values():
        del loss['type']
    assert losses == theirs


def titled_blocks(file):
    """Return the code of a page that says in which file it goes, by that file."""
    pattern = r'```python title="(.*?)"\n(.*?)```'
    return dict(re.findall(pattern, (REPO / file).read_text(), re.DOTALL))


def test_adding_a_method_as_the_guide_says(tmp_path, monkeypatch, device):
    guide = titled_blocks('docs/architecture.md')
    shutil.copytree(REPO / 'configs/_base_', tmp_path / 'configs/_base_')
    for name, code in guide.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    loss, config, tests = guide
    # as if the files were there
    monkeypatch.setattr(losses, '__path__', [*losses.__path__, str((tmp_path / loss).parent)])
    monkeypatch.setattr(pairs, 'REPO', tmp_path)
    monkeypatch.setattr(configs, 'BASES', tmp_path / 'configs/_base_')
    registered = {**OWN_MODELS.module_dict}
    try:
        test_functions = runpy.run_path(str(tmp_path / tests))
        for name, test in test_functions.items():
            if name.startswith('test_'):
                test()
        test_methods.test_every_pair_takes_a_step(Path(config).stem, 'vit', 'resnet', device)
        (command,) = blocks('docs/architecture.md', 'bash')
        parser = argparse.ArgumentParser()
        cli.add_run_arguments(parser)
        composed = cli.load_config(parser.parse_args(command.replace('\\\n', '').split()[2:]))
        assert composed.model.distiller.distill_losses.keys() == {'loss_at3', 'loss_at4'}
    finally:
        OWN_MODELS._module_dict = registered
        sys.modules.pop(f'{losses.__name__}.{Path(loss).stem}', None)


def test_the_walk_names_what_is_there():
    """What a link of the page is called is defined in the file that it leads to."""
    text = (REPO / 'docs/architecture.md').read_text()
    named = re.findall(r'\[`([\w.]+)`\]\(\.\./([^)]+)\)', text)
    assert len(named) > 20
    for name, file in named:
        defined = name.rpartition('.')[2]
        if Path(file).name != name:
            assert re.search(rf'^ *(def|class) {defined}\b', (REPO / file).read_text(), re.M), name


@pytest.mark.skipif(sys.version_info < (3, 11), reason='the site is built with Python 3.11')
def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path, monkeypatch):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(REPO)  # the API is read from the sources there
    config = load_config(str(REPO / 'mkdocs.yml'), strict=True, site_dir=str(tmp_path))
    config.plugins.on_startup(command='build', dirty=False)
    build(config)  # any warning is an error
    methods = (tmp_path / 'methods/index.html').read_text()
    source = (REPO / 'docs/methods.md').read_text()
    assert methods.count('class="mermaid"') == source.count('```mermaid')
    assert methods.count('<math ') > 40
    api = (tmp_path / 'api/models/index.html').read_text()
    assert all(f'id="mmkd_tas.models.{name}"' in api for name in models.__all__)
    for file in (tmp_path / 'api').rglob('*.html'):
        for left in ('class="arithmatex"', ':class:', ':func:', '.. math', '<blockquote'):
            assert left not in file.read_text(), (file, left)
