# The whole CIFAR-100 at 32 pixels, on one GPU. Attention and MLP teachers that see no other
# images are weak here, and so their students are small.
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w64_vit-w192',
    'CNN -> MLP': 'resnet18-w64_mixer-w192',
    'ViT -> CNN': 'vit-w192_resnet18-w8',
    'MLP -> CNN': 'mixer-w192_resnet18-w8',
}
_batches = {'train_dataloader.batch_size': 128, 'train_cfg.val_interval': 10}
seeds = 3
teacher = dict(
    dataset='cifar100-32px',
    options={'train_cfg.max_epochs': 200, **_batches},
    flags=['--amp', '--auto-scale-lr'],
)
student = dict(
    dataset='cifar100-32px',
    options={'train_cfg.max_epochs': 60, **_batches},
    flags=['--amp', '--auto-scale-lr'],
)
rows = [
    'student alone',
    'KD',
    'DKD',
    'DIST',
    'OFA',
    'TAS, bottleneck',
    'HCD',
    'RSD',
    'TAS-RSD, bottleneck',
]
