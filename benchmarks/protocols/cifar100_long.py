# Students that are trained to the end, by teachers that are better than they become alone: the
# first 20 classes of CIFAR-100 at 32 pixels, 9,000 images for teachers and 3,000 of these for
# students; on two CPU cores in about ten hours, `--quick` in about one. Teachers and students see
# none of the images that options are chosen on (the validation split), and the tables show the
# test images. benchmarks/report.py has the rules. More seeds: `--seeds 0 1 2`.
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w64-p8',
    'CNN -> MLP': 'resnet18-w16_mixer-w64-p8',
    'ViT -> CNN': 'vit-w128_resnet18-w4',
    'MLP -> CNN': 'mixer-w128_resnet18-w4',
    'CNN -> CNN': 'resnet18-w16_resnet18-w4',
}
_bf16 = {'model.teacher_precision': 'bfloat16'}
# bfloat16 where it is faster on a CPU: CNNs and MLPs, not ViTs; the teacher's answers are computed
# once where the assistant does not begin with the teacher's stages. The CNN student alone still
# gains with 160 and with 320 epochs.
_to_cnn = dict(
    flags=['--amp'],
    distilled={**_bf16, 'model.teacher_cache.augmentations': 80},
    cached=True,
    epochs=320,
)
directions = {
    'CNN -> ViT': dict(flags=[], distilled=_bf16),
    'CNN -> MLP': dict(flags=['--amp'], distilled=_bf16),
    'ViT -> CNN': _to_cnn,
    'MLP -> CNN': _to_cnn,
    'CNN -> CNN': _to_cnn,
}
seeds = 1
epochs = 80
test = True
_data = {
    'val_dataloader.dataset.split': 'val',
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'train_cfg.val_interval': 10,
}
teacher = dict(
    dataset='cifar100-20',
    options={
        'train_dataloader.dataset.num_train': 45000,
        **_data,
        'train_cfg.max_epochs': 40,
    },
    flags=['--amp'],
)
_swin = {**_bf16, 'model.distiller.connectors.assistant.block': 'swin'}
distilled_teachers = {
    'vit-w128': dict(
        pair='resnet18-w16_vit-w128',
        method='tas-rsd',
        options={**_swin, 'train_cfg.max_epochs': 20},
        flags=[],
    ),
    'mixer-w128': dict(
        pair='resnet18-w16_mixer-w128', method='tas-rsd', options=_swin, flags=['--amp']
    ),
}
student = dict(
    dataset='cifar100-20',
    options={
        'train_dataloader.dataset.num_train': 15000,
        **_data,
        'default_hooks.checkpoint.interval': 10,
    },
)
rows = [
    'student alone',
    'KD, T = 1',
    'KD, T = 4',
    'OFA',
    'RSD',
    'TAS',
    'TAS, bottleneck',
    'TAS, features fade out',
    'TAS-RSD',
    'TAS-RSD, bottleneck',
]
curves = dict(rows=rows, directions=['CNN -> ViT', 'ViT -> CNN'], epochs=[10, 20, 40, 80, 160])
quick = dict(
    teachers='cifar100_long',
    students='cifar100_long',
    pairs=dict(
        _delete_=True,
        **{
            'CNN -> ViT': 'resnet18-w16_vit-w64-p8',
            'CNN -> MLP': 'resnet18-w16_mixer-w64-p8',
        },
    ),
    curves=dict(rows=[]),
    rows=['student alone', 'KD, T = 4', 'TAS-RSD, bottleneck'],
)
