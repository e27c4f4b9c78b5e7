import logging

import pytest
import timm
import torch
from helpers import REPO, TINY, captured_log, same
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.functional import cross_entropy, interpolate

from mmkd_tas.checkpoint import read_checkpoint
from mmkd_tas.datasets import Digits
from mmkd_tas.errors import SetupError
from mmkd_tas.runs import Run


@HOOKS.register_module()
class CountHook(Hook):
    """Count the hook points that validation fires."""

    def __init__(self):
        self.calls = []
        for point in ('before_val_epoch', 'after_val_epoch', 'before_val_iter'):
            setattr(self, point, lambda *a, point=point, **k: self.calls.append(point))


STAGES = dict(
    _delete_=True,
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence')),
    loss_forward_mappings=dict(loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits')),
)


def runner(tmp_path, **changes):
    config = Config.fromfile(TINY)
    config.merge_from_dict({'work_dir': str(tmp_path), 'train_cfg.max_epochs': 1, **changes})
    return Runner.from_cfg(config)


def hook_of(run, kind):
    return next(hook for hook in run.hooks if type(hook).__name__ == kind)


def test_teacher_is_evaluated_once_and_other_hooks_see_nothing(tmp_path, monkeypatch):
    ema = [dict(type='EMAHook', momentum=0.5), dict(type='CountHook')]
    base = Config.fromfile(TINY)
    run = runner(
        tmp_path, **{'custom_hooks': [*base.custom_hooks, *ema], 'train_cfg.max_epochs': 2}
    )
    calls = []
    step = run.model.teacher_val_step
    monkeypatch.setattr(run.model, 'teacher_val_step', lambda data: calls.append(1) or step(data))
    run.train()
    assert len(calls) == 4  # once over the 797 images, in 2 epochs
    counts = hook_of(run, 'CountHook').calls
    assert counts.count('before_val_epoch') == counts.count('after_val_epoch') == 2
    assert counts.count('before_val_iter') == 2 * 4
    metrics = run.message_hub.get_info('teacher_metrics')
    assert 0 <= metrics['accuracy/top1'] <= 100
    assert read_checkpoint(tmp_path / 'epoch_2.pth')['message_hub']['runtime_info'][
        'teacher_metrics'
    ] == pytest.approx(metrics)


def test_validation_leaves_the_student_as_it_was_under_ema(tmp_path):
    """With MMRazor's own loop, EMAHook's averaged weights end up in the student."""
    base = Config.fromfile(TINY)
    run = runner(tmp_path, custom_hooks=[*base.custom_hooks, dict(type='EMAHook', momentum=0.5)])
    seen = {}

    class Watch(Hook):
        priority = 'LOWEST'

        def after_train_epoch(self, runner):
            seen['before'] = {k: v.clone() for k, v in runner.model.state_dict().items()}

        def after_val(self, runner):
            seen['after'] = {k: v.clone() for k, v in runner.model.state_dict().items()}

    run.register_hook(Watch())
    run.train()
    assert seen['before'].keys() == seen['after'].keys()
    for key, value in seen['before'].items():
        assert torch.equal(value, seen['after'][key]), key


def test_a_resumed_run_does_not_evaluate_the_teacher_again(tmp_path, monkeypatch):
    runner(tmp_path).train()
    run = runner(tmp_path, **{'resume': True, 'train_cfg.max_epochs': 2})
    monkeypatch.setattr(run.model, 'teacher_val_step', None)
    run.train()
    assert run.epoch == 2


@pytest.mark.parametrize(
    ('floor', 'top1', 'warning'),
    [
        (None, 50.0, None),
        (60.0, 50.0, 'below the floor of 60.00 %'),
        (40.0, 50.0, None),
        (20.0, 11.0, 'below the floor of 20.00 %'),  # random, and meant to be
    ],
)
def test_weak_teachers_are_warned_of(tmp_path, floor, top1, warning):
    run = runner(tmp_path)
    run._val_loop = run.build_val_loop(run._val_loop)
    hook = hook_of(run, 'PreflightHook')
    hook.teacher_floor = floor
    with captured_log() as messages:
        hook._judge_teacher(run, {'accuracy/top1': top1}, 10)
    assert len(messages) == (warning is not None)
    assert warning is None or warning in messages[0]


@pytest.mark.parametrize(
    'other', [dict(type='ConfusionMatrix'), dict(type='SingleLabelMetric', average=None)]
)
def test_metrics_that_are_no_number_are_left_to_the_student(tmp_path, other):
    evaluators = [dict(type='Accuracy', topk=(1,)), other]
    run = runner(tmp_path, val_evaluator=evaluators)
    run.train()
    assert run.message_hub.get_info('teacher_metrics').keys() == {'accuracy/top1'}


@pytest.mark.parametrize(('teacher', 'passes'), [(1.0, True), (100.0, False)])
def test_a_student_that_passes_its_teacher_is_told_once(tmp_path, teacher, passes, tiny_teacher):
    weights = {'model.random_teacher': False, 'model.teacher_ckpt': str(tiny_teacher)}
    run = runner(tmp_path, **{**weights, 'train_cfg.max_epochs': 2})
    # as a resumed run knows it, which does not evaluate the teacher again
    run.message_hub.update_info('teacher_metrics', {'accuracy/top1': teacher})
    with captured_log(logging.INFO) as messages:
        run.train()
        run.val()  # which is no training
    said = [line for line in messages if 'has passed its teacher' in line]
    assert len(said) == passes
    for line in said:
        assert f'its teacher ({teacher:.2f} %)' in line
        assert all(advice in line for advice in ('loss_schedules', 'loss_weight', 'docs/no-gain'))
    (end,) = (line for line in messages if 'On the validation data the student has' in line)
    student = Run.read(tmp_path).top1
    assert f'has {student:.2f} % top-1 and its teacher {teacher:.2f} %' in end
    again = runner(tmp_path, **{**weights, 'train_cfg.max_epochs': 3, 'resume': True})
    with captured_log() as messages:
        again.train()
    assert not [line for line in messages if 'has passed its teacher' in line]


def test_a_teacher_no_better_than_chance_ends_the_run(tmp_path, tiny_teacher):
    """As of a checkpoint of random weights, or of classes in another order."""
    changes = {'model.random_teacher': False, 'model.teacher_ckpt': str(tiny_teacher)}
    with pytest.raises(SetupError, match=r'no better than chance \(10.00 %\): check model.teach'):
        runner(tmp_path, **changes).train()
    assert not list(tmp_path.glob('*.pth'))
    runner(tmp_path, **{**changes, 'model.random_teacher': True}).train()
    assert (tmp_path / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(
    ('classes', 'said'), [(0, 'has no head'), (7, 'knows 7 classes and the student 10')]
)
def test_a_teacher_of_other_classes_is_not_evaluated(tmp_path, classes, said):
    """It teaches features, and is not judged by labels that it does not know."""
    teacher = dict(type='mmkd_tas.Classifier', model='timm:test_resnet', num_classes=classes)
    rsd = Config.fromfile(REPO / 'configs/_base_/methods/rsd.py').distiller
    changes = {
        'model.teacher': dict(_delete_=True, **teacher),
        'model.distiller': dict(_delete_=True, **rsd),
        'model.input_size': 16,
    }
    with captured_log(logging.INFO) as messages:
        runner(tmp_path, **changes).train()
    assert any(f'The teacher {said}: it is not evaluated' in message for message in messages)
    assert (tmp_path / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(('images', 'classes', 'top1'), [(5, 2, 80.0), (10, 5, 50.0), (4, 3, 75.0)])
def test_few_images_do_not_condemn_a_good_teacher(tmp_path, images, classes, top1):
    run = runner(tmp_path, **{'val_dataloader.dataset.indices': images})
    run._val_loop = run.build_val_loop(run._val_loop)
    run.model.random_teacher = False
    hook = hook_of(run, 'PreflightHook')
    hook._judge_teacher(run, {'accuracy/top1': top1}, classes)
    with pytest.raises(SetupError, match='no better than chance'):
        hook._judge_teacher(run, {'accuracy/top1': 100 / classes}, classes)


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_class_counts_of_data_and_head_must_agree(tmp_path, loader):
    run = runner(tmp_path, **{f'{loader}.dataset.metainfo': dict(classes=('a', 'b'))})
    with pytest.raises(SetupError, match=f'{loader}: the data set has 2 classes.* 10'):
        run.train()
    assert not list(tmp_path.glob('*.pth'))


def test_class_counts_are_checked_without_a_teacher(tmp_path):
    student = Config.fromfile(TINY).model.architecture
    student.head.num_classes = 7
    run = runner(tmp_path, model=dict(_delete_=True, **student))
    with pytest.raises(SetupError, match='has 10 classes and the head of the model 7'):
        run.train()


def alone(tmp_path, **changes):
    """A run of the student without a teacher."""
    student = Config.fromfile(TINY).model.architecture
    return runner(tmp_path, model=dict(_delete_=True, **student), **changes)


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """Checkpoints of a distillation and of a training of its student alone."""
    folder = tmp_path_factory.mktemp('started')
    # the student's dropout and mixup leave it with other weights than it began with
    runner(folder / 'distilled').train()
    alone(folder / 'alone').train()
    return {name: folder / name / 'epoch_1.pth' for name in ('distilled', 'alone')}


@pytest.mark.parametrize(
    ('kind', 'file', 'changes', 'saying'),
    [
        (
            'distilled',
            'alone',
            {},
            r"missing: archi.* unexpected: backbone.*student's: give it as model.student_ckpt",
        ),
        ('alone', 'distilled', {}, 'missing: backbone.* unexpected: architecture.backbone'),
        (
            'distilled',
            'distilled',
            {'model.architecture.backbone.arch.num_layers': 5},
            'missing: architecture.backbone.layers.4',
        ),
        ('alone', 'alone', {'model.backbone.arch.num_layers': 5}, 'missing: backbone.layers.4'),
        ('alone', 'alone', {'model.backbone.arch.num_layers': 3}, 'unexpected: backbone.layers.3'),
        (
            'alone',
            'alone',
            {'model.head.num_classes': 7},
            'for 10 .*preflight.new_head=True',
        ),
        ('alone', 'bare', {}, 'missing: backbone.* unexpected: '),
    ],
)
def test_load_from_must_fit_wholly(tmp_path, started, kind, file, changes, saying):
    checkpoint = started.get(file, tmp_path / 'bare.pth')
    torch.save({'optimizer': {}, 'weight': torch.ones(3)}, tmp_path / 'bare.pth')
    make = runner if kind == 'distilled' else alone
    run = make(tmp_path, load_from=str(checkpoint), **changes)
    with pytest.raises(SetupError, match=f'^load_from: .*{saying}'):
        run.train()
    assert not list(tmp_path.glob('epoch*'))


@pytest.mark.parametrize('kind', ['distilled', 'alone'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_load_from_that_fits_is_loaded(tmp_path, started, kind, prefix):
    weights = read_checkpoint(started[kind])['state_dict']
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / 'bare.pth')
    make = runner if kind == 'distilled' else alone
    run = make(tmp_path, load_from=str(tmp_path / 'bare.pth'))
    run.load_or_resume()
    assert same(dict(run.model.state_dict()), dict(weights))


def test_a_new_head_for_the_rest_of_a_checkpoint(tmp_path, started):
    weights = dict(read_checkpoint(started['alone'])['state_dict'])
    for key in ('head.fc.weight', 'head.fc.bias'):
        weights[key] = weights[key][:7]
    torch.save(weights, tmp_path / 'other.pth')
    new_head = {'default_hooks.preflight': dict(type='mmkd_tas.PreflightHook', new_head=True)}
    run = alone(tmp_path, load_from=str(tmp_path / 'other.pth'), **new_head)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    with captured_log() as messages:
        run.load_or_resume()
    for key, value in run.model.state_dict().items():
        expected = before if key.startswith('head.') else weights
        assert torch.equal(value, expected[key]), key
    assert (
        sum('the head for 10 (head.fc.weight, head.fc.bias) is newly' in m for m in messages) == 1
    )
    del weights['backbone.cls_token']
    torch.save(weights, tmp_path / 'other.pth')
    with pytest.raises(SetupError, match='missing: backbone.cls_token$'):
        alone(tmp_path, load_from=str(tmp_path / 'other.pth'), **new_head).load_or_resume()


def test_resuming_another_model_is_refused(tmp_path):
    runner(tmp_path).train()
    run = runner(tmp_path, **{'resume': True, 'model.architecture.backbone.arch.num_layers': 5})
    with pytest.raises(SetupError, match='missing: architecture.backbone.layers.4'):
        run.train()


SAID = 'resume: settings come from the checkpoint'


def test_settings_that_give_way_to_the_checkpoint_are_told(tmp_path, tiny_teacher):
    adamw = 'optim_wrapper.optimizer'
    steps = {'_delete_': True, 'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.1}
    teacher = {'model.teacher_ckpt': str(tiny_teacher)}
    runner(tmp_path, param_scheduler=dict(steps), **teacher).train()
    with captured_log() as messages:
        same = runner(tmp_path, param_scheduler=dict(steps), resume=True, **teacher)
        same.train()
    assert not [text for text in messages if SAID in text]
    changes = {
        f'{adamw}.lr': 0.01,
        f'{adamw}.weight_decay': 0.3,
        f'{adamw}.betas': [0.8, 0.999],
        'param_scheduler': {**steps, 'gamma': 0.5, 'milestones': [3]},
        'randomness.seed': 7,
        'train_cfg.max_epochs': 2,  # which the checkpoint does not decide
    }
    with captured_log() as messages:
        run = runner(tmp_path, **changes, **teacher, resume=True)
        run.train()
    (told,) = [text for text in messages if SAID in text]
    for setting in (
        'epoch_1.pth',
        'optim_wrapper.optimizer.lr 0.001 (config: 0.01)',
        'optim_wrapper.optimizer.weight_decay 0.05 (config: 0.3)',
        'optim_wrapper.optimizer.betas (0.9, 0.999) (config: (0.8, 0.999))',
        'param_scheduler.gamma 0.1 (config: 0.5)',
        'param_scheduler.milestones ',
        'randomness.seed 0 (config: 7)',
        'load_from=',
    ):
        assert setting in told
    assert 'max_epochs' not in told
    # and so it was
    group = run.optim_wrapper.param_groups[0]
    assert (group['initial_lr'], group['weight_decay'], run.seed) == (0.001, 0.05, 0)


@pytest.mark.parametrize(
    ('changes', 'saying'),
    [
        (
            {'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9)},
            'of another optimizer, without momentum',
        ),
        (
            {'optim_wrapper.paramwise_cfg.norm_decay_mult': 0},
            'weights in 1 groups of the optimizer, and the config makes',
        ),
    ],
)
def test_resuming_with_another_optimizer_is_refused(tmp_path, changes, saying):
    runner(tmp_path, param_scheduler=None).train()
    run = runner(tmp_path, param_scheduler=None, resume=True, **changes)
    with pytest.raises(SetupError, match=saying):
        run.train()


def test_resuming_with_another_teacher_is_refused(tmp_path):
    runner(tmp_path).train()
    more = {'resume': True, 'train_cfg.max_epochs': 2}
    run = runner(tmp_path, **more)
    bias = run.model.teacher.head.fc.bias
    with torch.no_grad():
        bias[3] += 1e-6
    with pytest.raises(SetupError, match='teacher_ckpt.* not those with which this run began'):
        run.train()
    with torch.no_grad():
        bias[3] -= 1e-6
    assert bias[3] == 0
    run.train()
    assert run.epoch == 2
    # a checkpoint from before there were fingerprints
    checkpoint = read_checkpoint(tmp_path / 'epoch_2.pth')
    del checkpoint['message_hub']['runtime_info']['teacher_fingerprint']
    torch.save(checkpoint, tmp_path / 'old.pth')
    more = {'resume': True, 'load_from': str(tmp_path / 'old.pth'), 'train_cfg.max_epochs': 3}
    run = runner(tmp_path, **more)
    run.message_hub.runtime_info.pop('teacher_fingerprint', None)
    run.train()
    assert 'teacher_fingerprint' in run.message_hub.runtime_info


def test_images_of_another_size_than_the_stages_were_looked_up_with(tmp_path):
    run = runner(tmp_path, **{'model.distiller': STAGES})
    run.train()
    run = runner(tmp_path, **{'model.distiller': STAGES, 'model.input_size': 32})
    with pytest.raises(SetupError, match=r'the training images have 16 x 16; set .*\(16, 16\)'):
        run.train()


GREY = {
    'train_dataloader.dataset.pipeline': [
        dict(type='RandomGrayscale', prob=1.0, keep_channels=False),
        dict(type='PackInputs'),
    ],
    'val_dataloader.dataset.pipeline': [
        dict(type='RandomGrayscale', prob=1.0, keep_channels=False),
        dict(type='PackInputs'),
    ],
    'data_preprocessor': dict(mean=[77.7], std=[94.8]),
    'model.distiller': STAGES,
    'model.architecture.backbone.in_channels': 1,
}


@pytest.mark.parametrize('teachers', [1, 3])
def test_a_training_with_images_of_one_channel(tmp_path, teachers):
    run = runner(tmp_path, **GREY, **{'model.teacher.backbone.in_channels': teachers})
    run.train()
    assert run.message_hub.get_scalar('val/accuracy/top1').current() >= 0


@pytest.mark.parametrize(
    ('changes', 'saying'),
    [
        (
            {'model.architecture.backbone.in_channels': 3},
            'images have 1 channels .* and the student takes 3',
        ),
        (
            {'data_preprocessor': dict(mean=[77.7] * 3, std=[94.8] * 3)},
            'images have 3 channels when they are normalised, and the student takes 1',
        ),
        (
            {'model.teacher.backbone.in_channels': 1, 'model.teacher_input': dict(mean=[1.0] * 3)},
            'the teacher takes images of 1 channels and would get 3',
        ),
    ],
)
def test_images_of_other_channels_than_a_model_takes(tmp_path, changes, saying):
    with pytest.raises(SetupError, match=saying):
        runner(tmp_path, **{**GREY, **changes}).train()


RSD = {
    **STAGES,
    'connectors': dict(decoupler=dict(type='mmkd_tas.Decoupler')),
    'distill_losses': dict(loss_rsd=dict(type='mmkd_tas.RSDLoss')),
    'loss_forward_mappings': dict(loss_rsd=dict(preds_S='decoupler', preds_T='teacher.pooled')),
}


@pytest.mark.parametrize(
    ('distiller', 'loader', 'refused'),
    [
        (RSD, dict(batch_size=13), True),  # 40 images
        (RSD, dict(batch_size=1), True),
        (RSD, dict(batch_size=13, drop_last=True), False),
        (RSD, dict(batch_size=13, sampler=dict(type='InfiniteSampler')), False),
        (STAGES, dict(batch_size=13), False),
    ],
)
def test_a_batch_of_one_image_that_batch_norm_would_refuse(tmp_path, distiller, loader, refused):
    """It ended the run in the last step of the first epoch."""
    run = runner(
        tmp_path,
        **{
            'model.distiller': distiller,
            'train_dataloader': {**Config.fromfile(TINY).train_dataloader, **loader},
        },
    )
    if loader.get('sampler'):
        run._train_loop = dict(by_epoch=False, max_iters=5)
    if not refused:
        run.train()
        return
    with pytest.raises(SetupError, match=r'40 images in batches of \d+ leave one of a single'):
        run.train()
    assert run.iter == 0


def test_trying_a_batch_leaves_no_trace(tmp_path):
    student = Config.fromfile(TINY).model.teacher
    run = runner(
        tmp_path,
        **{
            'model.distiller': STAGES,
            'model.architecture': dict(_delete_=True, **student),
            'model.input_size': 16,
            'train_dataloader.batch_size': 13,
        },
    )
    run.train()
    counts = [b for name, b in run.model.named_buffers() if name.endswith('num_batches_tracked')]
    assert counts
    assert all(count == 4 for count in counts)  # 13 + 13 + 13 + 1 images


@pytest.mark.parametrize(
    ('options', 'saying'),
    [
        (
            {'model.distiller': {**STAGES, 'loss_schedules': dict(loss_kd=dict(warmup=2))}},
            'loss_schedules.loss_kd counts epochs, .* by_epoch=False',
        ),
        (
            {'custom_hooks': [dict(type='mmrazor.StopDistillHook', stop_epoch=1)]},
            'StopDistillHook counts epochs, .* loss_schedules',
        ),
        (
            {
                'model.distiller': {
                    **STAGES,
                    'loss_schedules': dict(loss_kd=dict(warmup=2, by_epoch=False)),
                }
            },
            None,
        ),
        (
            {'model.distiller': {**STAGES, 'loss_schedules': dict(loss_kd=dict(decay='cosine'))}},
            None,
        ),
    ],
)
def test_what_counts_epochs_in_a_training_in_iterations(tmp_path, options, saying):
    hooks = [*Config.fromfile(TINY).custom_hooks, *options.pop('custom_hooks', [])]
    iterations = dict(_delete_=True, by_epoch=False, max_iters=3, val_interval=3)
    run = runner(tmp_path, **options, custom_hooks=hooks, train_cfg=iterations)
    if saying is None:
        run.train()
        return
    with pytest.raises(SetupError, match=saying):
        run.train()


def test_a_teacher_trained_under_another_normalisation_is_found_out(tmp_path):
    """One that was trained in a plain loop with mean = std = 0.5."""
    changes = {
        'model.teacher': dict(
            _delete_=True,
            type='mmkd_tas.Classifier',
            model='timm:test_efficientnet',
            num_classes=10,
            img_size=32,
        ),
        'model.teacher_ckpt': str(tmp_path / 'teacher.pth'),
        'model.distiller': STAGES,
        'model.random_teacher': False,
        'model.teacher_input': dict(mean=[0.0] * 3, std=[30.0] * 3),
    }
    images, labels = digits('train')
    teacher = timm.create_model('test_efficientnet', num_classes=10).train()
    optimizer = torch.optim.AdamW(teacher.parameters(), 3e-3)
    for _ in range(4):
        for chosen in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            cross_entropy(teacher(half(images[chosen])), labels[chosen]).backward()
            optimizer.step()
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    images, labels = digits('test')
    with torch.no_grad():
        right = teacher.eval()(half(images)).argmax(1) == labels
    with captured_log() as messages:
        runner(tmp_path, **changes).train()
    (told,) = [message for message in messages if 'another normalisation' in message]
    # the accuracy under the right one is that of the plain loop
    assert f'{100 * right.float().mean():.1f} % under another normalisation (mean = std' in told
    instead = 'model.teacher_input.mean=[127.5, 127.5, 127.5] and model.teacher_input.std=[127.5, 1'
    assert instead in told
    # what the message says to write is right, and then there is nothing to say
    changes['model.teacher_input'] = dict(mean=[127.5] * 3, std=[127.5] * 3)
    with captured_log() as messages:
        run = runner(tmp_path / 'right', **changes)
        run.train()
    assert not [message for message in messages if 'normalisation' in message]
    found = run.message_hub.get_info('teacher_metrics')['accuracy/top1']
    assert found == pytest.approx(100 * right.float().mean().item(), abs=0.2)


def digits(split):
    samples = Digits(split, image_size=16)
    images = torch.stack([torch.from_numpy(sample['img']) for sample in samples])
    return images.permute(0, 3, 1, 2), torch.tensor([sample['gt_label'] for sample in samples])


def half(images):
    return interpolate(images / 127.5 - 1, 32, mode='bicubic', antialias=True)
