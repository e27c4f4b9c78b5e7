# OFA-KD's stronger recipe: LAMB, repeated augmentation, EMA; 8 GPUs, batches of 256 each
_base_ = ['../default_runtime.py', '../datasets/in1k.py']
data_preprocessor = dict(
    batch_augments=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)])
)
# timm's policies without `inc1`: some of them grow weaker as the level rises
policies = [
    dict(type='AutoContrast'),
    dict(type='Equalize'),
    dict(type='Invert'),
    dict(type='Rotate', magnitude_range=(0, 30)),
    # rounded up, where timm rounds down
    dict(type='Posterize', magnitude_range=(-1, 3)),
    dict(type='Solarize', magnitude_range=(0, 256)),
    dict(type='SolarizeAdd', magnitude_range=(0, 110)),
    dict(type='ColorTransform', magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type='Contrast', magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type='Brightness', magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type='Sharpness', magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal'),
    dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical'),
    dict(type='Translate', magnitude_range=(0, 0.45), direction='horizontal'),
    dict(type='Translate', magnitude_range=(0, 0.45), direction='vertical'),
]
train_dataloader = dict(
    batch_size=256,
    drop_last=True,
    sampler=dict(type='RepeatAugSampler', num_repeats=3, shuffle=True),
    dataset=dict(
        pipeline=[
            *_base_.train_pipeline[:-1],
            dict(
                type='RandomChoice',
                transforms=[
                    [
                        dict(
                            type='RandAugment',
                            policies=policies,
                            num_policies=2,
                            total_level=10,
                            magnitude_level=7,
                            magnitude_std=0.5,
                            hparams=dict(pad_val=[104, 116, 124], interpolation=kind),
                        )
                    ]
                    for kind in ('bilinear', 'bicubic')
                ],
            ),
            dict(type='PackInputs'),
        ]
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                type='ResizeEdge',
                scale=235,
                edge='short',
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ]
    )
)
test_dataloader = val_dataloader
optim_wrapper = dict(
    optimizer=dict(type='Lamb', lr=5e-3, weight_decay=0.02),
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-4, end=6, by_epoch=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=2e-4, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=2048)
custom_hooks = [
    *_base_.custom_hooks,
    # of the statistics of BatchNorm, too, as timm's
    dict(type='EMAHook', momentum=2e-4, update_buffers=True, priority='ABOVE_NORMAL'),
]
