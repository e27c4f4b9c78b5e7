# What other papers compare with, after 40 epochs of the trainings of cifar100_long.py; run
# `--quick`, with its teachers and the rows that both have
_base_ = './cifar100_long.py'
rules = False
teachers = students = 'cifar100_long'
seeds = 1
epochs = 40
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
curves = dict(rows=[])
quick = dict(
    teachers='cifar100_long_quick',
    students='cifar100_long_quick',
    epochs=40,
    curves=dict(epochs=[]),
    rows=rows,
)
