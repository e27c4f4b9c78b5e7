"""What the documents show works as it stands there."""

import argparse
import fnmatch
import inspect
import itertools
import re

import pytest
import timm
import torch
from helpers import REPO
from mmengine.config import Config
from mmengine.registry import MODELS
from mmpretrain.structures import DataSample
from pairs import batch, distillation

from mmkd_tas import cli
from mmkd_tas.models import CrossArchDistill

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
