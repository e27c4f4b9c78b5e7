# Students that are trained to the end, by teachers that are better than they become alone: the
# first 20 classes of CIFAR-100 at 32 pixels, on two CPU cores in about 12 hours, `--quick` in about
# one. Teachers and students see none of the images that options are chosen on (the validation
# split), and the tables show the test images. benchmarks/report.py has the rules.
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
# once where the assistant does not begin with the teacher's stages
directions = {
    'CNN -> ViT': dict(flags=[], distilled=_bf16),
    'CNN -> MLP': dict(flags=['--amp'], distilled=_bf16),
    'ViT -> CNN': dict(
        flags=['--amp'], distilled={**_bf16, 'model.teacher_cache.augmentations': 80}, cached=True
    ),
    'MLP -> CNN': dict(
        flags=['--amp'], distilled={**_bf16, 'model.teacher_cache.augmentations': 80}, cached=True
    ),
    'CNN -> CNN': dict(
        flags=['--amp'], distilled={**_bf16, 'model.teacher_cache.augmentations': 80}, cached=True
    ),
}
seeds = 3
epochs = 60
test = True
_data = {
    'train_dataloader.dataset.num_train': 45000,
    'val_dataloader.dataset.split': 'val',
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'train_cfg.val_interval': 10,
}
teacher = dict(
    dataset='cifar100-20', options={**_data, 'train_cfg.max_epochs': 60}, flags=['--amp']
)
_swin = {**_bf16, 'model.distiller.connectors.assistant.block': 'swin'}
distilled_teachers = {
    'vit-w128': dict(pair='resnet18-w16_vit-w128', method='tas-rsd', options=_swin, flags=[]),
    'mixer-w128': dict(
        pair='resnet18-w16_mixer-w128', method='tas-rsd', options=_swin, flags=['--amp']
    ),
}
student = dict(dataset='cifar100-20', options={**_data, 'default_hooks.checkpoint.interval': 10})
rows = [
    'student alone',
    'KD, T = 1',
    'KD, T = 4',
    'DKD, T = 1',
    'DIST, weight 1',
    'FitNet',
    'RKD',
    'OFA',
    'HCD',
    'RSD',
    'TAS',
    'TAS-RSD',
]
curves = dict(
    rows=['student alone', 'KD, T = 4', 'OFA', 'RSD', 'TAS', 'TAS-RSD'],
    directions=['CNN -> ViT', 'ViT -> CNN'],
    epochs=[5, 10, 20, 40],
)
_quick_rows = [
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
# 3,000 images for the students, 9,000 as above for their teachers; one seed
quick = dict(
    pairs=dict(
        _delete_=True,
        **{
            'CNN -> ViT': 'resnet18-w16_vit-w64-p8',
            'CNN -> MLP': 'resnet18-w16_mixer-w64-p8',
            'ViT -> CNN': 'vit-w128_resnet18-w4',
        },
    ),
    epochs=80,
    # the CNN student alone still gains with 160 and with 320
    directions={'ViT -> CNN': dict(epochs=320)},
    curves=dict(rows=_quick_rows, epochs=[10, 20, 40, 80, 160]),
    seeds=1,
    teacher=dict(options={'train_cfg.max_epochs': 40}),
    distilled_teachers={'vit-w128': dict(options={'train_cfg.max_epochs': 20})},
    student=dict(options={'train_dataloader.dataset.num_train': 15000}),
    rows=_quick_rows,
)
