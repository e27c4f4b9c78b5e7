# CIFAR-100 on two CPU cores in two hours: small models at 32 pixels, bfloat16. Teachers learn
# from all training images; students from a fifth of them, for 5 epochs.
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w128',
    'CNN -> MLP': 'resnet18-w16_mixer-w128',
    'ViT -> CNN': 'vit-w128_resnet18-w8',
    'MLP -> CNN': 'mixer-w128_resnet18-w8',
}
seeds = 3
_in_process = {'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0}
teacher = dict(
    dataset='cifar100-32px',
    options={'train_cfg.max_epochs': 12, 'train_cfg.val_interval': 4, **_in_process},
    flags=['--amp'],
)
student = dict(
    dataset='cifar100-10k', options={'train_cfg.max_epochs': 5, **_in_process}, flags=['--amp']
)
