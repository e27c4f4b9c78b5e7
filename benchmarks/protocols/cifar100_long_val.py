# One change at a time to TAS and TAS-RSD, on the validation images of the trainings of
# cifar100_long.py
_base_ = './cifar100_long.py'
test = False
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
