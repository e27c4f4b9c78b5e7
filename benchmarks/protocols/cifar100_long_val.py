# One change at a time to TAS and TAS-RSD, on the validation images of the trainings of
# cifar100_long.py
_base_ = './cifar100_long_methods.py'
test = False
rows = [
    'student alone',
    'KD, T = 4',
    'KD, T = 1',
    'TAS',
    'TAS, T = 4',
    'TAS, without InfoNCE',
    'TAS, features fade out',
    'TAS, bottleneck',
    'TAS-RSD',
    'TAS-RSD, half the weights',
    'TAS-RSD, T = 4',
    'TAS-RSD, assistant not detached',
    'TAS-RSD, split after stage 2',
    'TAS-RSD, features fade out',
    'TAS-RSD, all fades out',
]
