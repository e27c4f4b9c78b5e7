# What papers compare with, on the digits, with the defaults of today
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w64',
    'CNN -> MLP': 'resnet18-w16_mixer-w64',
    'ViT -> CNN': 'vit-w64_resnet18-w4',
    'MLP -> CNN': 'mixer-w64_resnet18-w4',
}
seeds = 1
rows = [
    'student alone',
    'KD',
    'DKD',
    'DIST',
    'FitNet',
    'CC',
    'RKD',
    'CRD',
    'RSD on logits',
    'PAT',
]
teacher = dict(dataset='digits', options={})
student = dict(dataset='digits200', options={})
