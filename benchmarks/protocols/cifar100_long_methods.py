# What other papers compare with, after 40 epochs of the trainings of cifar100_long.py
_base_ = './cifar100_long.py'
rules = False
teachers = students = 'cifar100_long'
pairs = dict(
    _delete_=True,
    **{
        'CNN -> ViT': 'resnet18-w16_vit-w64-p8',
        'ViT -> CNN': 'vit-w128_resnet18-w4',
    },
)
epochs = 40
directions = {'ViT -> CNN': dict(epochs=40)}
curves = dict(rows=[])
rows = [
    'student alone',
    'KD, T = 4',
    'DKD, T = 1',
    'DIST, weight 1',
    'FitNet',
    'CC',
    'RKD',
    'CRD',
    'RSD on logits',
    'PAT',
    'HCD',
    'TAS',
    'TAS-RSD',
]
