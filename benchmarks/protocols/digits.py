# Handwritten digits, embedded: two hours on two CPU cores
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w64',
    'CNN -> MLP': 'resnet18-w16_mixer-w64',
    'ViT -> CNN': 'vit-w64_resnet18-w4',
    'MLP -> CNN': 'mixer-w64_resnet18-w4',
}
seeds = 5
rows = [
    'student alone',
    'KD',
    'OFA',
    'TAS',
    'TAS, without InfoNCE',
    'TAS, without OFA',
    'TAS, without L(t -> a)',
    'TAS, assistant not detached',
    'HCD, target not detached',
    'RSD',
    'TAS, RSD for InfoNCE',
    'TAS + HCD, target not detached',
    'OFA + RSD',
]
# the defaults of when the record was made: decay on all parameters, and wider decouplers for RSD
_as_recorded = {'optim_wrapper.paramwise_cfg': None}
_pairs = ('teacher_student', 'teacher_assistant', 'assistant_student')
known_rows = {
    'RSD': dict(connectors={'decoupler.expansion': 4}),
    'TAS, RSD for InfoNCE': dict(
        connectors={f'{pair}.expansion': 4 for pair in _pairs},
    ),
    'OFA + RSD': dict(connectors={'decoupler.expansion': 4}),
}
teacher = dict(dataset='digits', options=_as_recorded)
student = dict(dataset='digits200', options=_as_recorded)
