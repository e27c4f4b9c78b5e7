# As for CIFAR-100, with 8 GPUs, batches of 128 each, a lower last learning rate, and EMA
_base_ = ['../default_runtime.py', '../datasets/in1k.py', '../schedules/adamw_300e.py']
data_preprocessor = dict(
    batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'),
            ),
            dict(
                type='RandomErasing',
                erase_prob=0.25,
                mode='rand',
                min_area_ratio=0.02,
                max_area_ratio=1 / 3,
                fill_color=[103.53, 116.28, 123.675],
                fill_std=[57.375, 57.12, 58.395],
            ),
            dict(type='PackInputs'),
        ]
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', begin=20, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True
    ),
]
train_cfg = dict(val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [
    dict(type='mmkd_tas.PreflightHook'),
    dict(type='mmkd_tas.EpochSeedHook'),
    dict(type='mmkd_tas.FiniteLossHook'),
    dict(type='mmkd_tas.ProgressHook'),
    dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL'),
]
