# As for CIFAR-100, with a lower last learning rate, and EMA
_base_ = ['../default_runtime.py', '../datasets/in1k.py', '../schedules/adamw_300e.py']
data_preprocessor = dict(
    batch_augments=dict(
        augments=dict(
            type='mmkd_tas.MixThenErase',
            augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
            erase_prob=0.25,
        )
    )
)
train_dataloader = dict(
    drop_last=True,
    batch_size=128,
    dataset=dict(
        pipeline=[
            *_base_.train_pipeline[:-1],
            dict(
                type='RandomChoice',
                transforms=[
                    [
                        dict(
                            type='RandAugment',
                            policies='timm_increasing',
                            num_policies=2,
                            total_level=10,
                            magnitude_level=9,
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
                scale=248,
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
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=21, by_epoch=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=2e-3, by_epoch=True),
]
train_cfg = dict(val_interval=1)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
]
