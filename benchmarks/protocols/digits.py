# Handwritten digits, embedded: two hours on two CPU cores
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w64',
    'CNN -> MLP': 'resnet18-w16_mixer-w64',
    'ViT -> CNN': 'vit-w64_resnet18-w4',
    'MLP -> CNN': 'mixer-w64_resnet18-w4',
}
seeds = 5
rows = [row for row in _base_.known_rows if row not in ('DKD', 'DIST')]
teacher = dict(dataset='digits', options=dict())
student = dict(dataset='digits200', options=dict())
