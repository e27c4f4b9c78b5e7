# Rows of the tables: a method, and options on top of it; `cached`: whether a cache of the teacher
# holds all that it takes
_pairs = ('ts', 'ta', 'as')
_features = [f'loss_{pair}_features' for pair in _pairs]
_logits = [f'loss_{pair}_logits' for pair in _pairs]
# The block of the assistant: the paper's, and the default
_swin = {'assistant.block': 'swin'}
_bottleneck = {'assistant.block': 'bottleneck'}
known_rows = {
    'student alone': dict(method='student'),
    'KD': dict(method='kd'),
    'KD, T = 1': dict(method='kd', losses={'loss_kd.tau': 1}),
    'KD, T = 4': dict(method='kd'),
    'DKD, T = 1': dict(method='dkd', losses={'loss_dkd.tau': 1, 'loss_dkd.beta': 2}),
    'DIST, weight 1': dict(method='dist', losses={'loss_dist.loss_weight': 1}),
    'FitNet': dict(method='fitnet', cached=False),
    'RKD': dict(method='rkd'),
    'CC': dict(method='cc'),
    'CRD': dict(method='crd'),
    'PAT': dict(method='pat', cached=False),
    'RSD on logits': dict(method='rsd-logits'),
    'DKD': dict(method='dkd'),
    'DIST': dict(method='dist'),
    'OFA': dict(method='ofa'),
    'TAS': dict(method='tas', connectors=_swin),
    'TAS, without InfoNCE': dict(
        method='tas',
        connectors=_swin,
        losses={f'{loss}.loss_weight': 0 for loss in _features},
    ),
    'TAS, without OFA': dict(
        method='tas',
        connectors=_swin,
        losses={f'{loss}.loss_weight': 0 for loss in _logits},
    ),
    'TAS, without L(t -> a)': dict(
        method='tas',
        connectors=_swin,
        losses={f'loss_ta_{kind}.loss_weight': 0 for kind in ('features', 'logits')},
    ),
    'TAS, assistant not detached': dict(
        method='tas',
        connectors=_swin,
        losses={f'loss_as_{kind}.detach_target': False for kind in ('features', 'logits')},
    ),
    'HCD': dict(method='hcd'),
    'HCD, target not detached': dict(method='hcd', losses={'loss_hcd.detach_target': False}),
    'HCD, mean over stages': dict(method='hcd', losses={'loss_hcd.stage_reduction': 'mean'}),
    'HCD, mean over stages, target not detached': dict(
        method='hcd',
        losses={'loss_hcd.stage_reduction': 'mean', 'loss_hcd.detach_target': False},
    ),
    'RSD': dict(method='rsd'),
    'TAS, RSD for InfoNCE': dict(method='tas-rsd', connectors=_swin),
    'TAS-RSD': dict(method='tas-rsd', connectors=_swin),
    'TAS-RSD, half the weights': dict(
        method='tas-rsd',
        connectors=_swin,
        losses={
            **{f'{loss}.loss_weight': 0.05 for loss in _features},
            **{f'{loss}.loss_weight': 0.5 for loss in _logits},
        },
    ),
    'TAS-RSD, T = 4': dict(
        method='tas-rsd', connectors=_swin, losses={f'{loss}.tau': 4 for loss in _logits}
    ),
    'TAS-RSD, assistant not detached': dict(
        method='tas-rsd',
        connectors=_swin,
        losses={f'loss_as_{kind}.detach_target': False for kind in ('features', 'logits')},
    ),
    'TAS-RSD, split after stage 2': dict(
        method='tas-rsd', connectors={**_swin, 'assistant.split': 2}
    ),
    'TAS, T = 4': dict(
        method='tas', connectors=_swin, losses={f'{loss}.tau': 4 for loss in _logits}
    ),
    'TAS, bottleneck': dict(method='tas', connectors=_bottleneck),
    'TAS-RSD, bottleneck': dict(method='tas-rsd', connectors=_bottleneck),
    'TAS, features fade out': dict(
        method='tas', connectors=_swin, schedules={f'{loss}.decay': 'cosine' for loss in _features}
    ),
    'TAS-RSD, features fade out': dict(
        method='tas-rsd',
        connectors=_swin,
        schedules={f'{loss}.decay': 'cosine' for loss in _features},
    ),
    'TAS-RSD, all fades out': dict(
        method='tas-rsd',
        connectors=_swin,
        schedules={f'{loss}.decay': 'cosine' for loss in [*_features, *_logits]},
    ),
    'TAS + HCD': dict(method='tas-hcd', connectors=_swin),
    'TAS + HCD, target not detached': dict(
        method='tas-hcd', connectors=_swin, losses={'loss_hcd.detach_target': False}
    ),
    'OFA + RSD': dict(method='ofa-rsd'),
}
