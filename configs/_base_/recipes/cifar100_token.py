# With RandAugment in the place of colour jitter, as in timm
_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/adamw_300e.py']
data_preprocessor = dict(
    batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[129, 124, 112], interpolation='bicubic'),
            ),
            dict(
                type='RandomErasing',
                erase_prob=0.25,
                mode='rand',
                min_area_ratio=0.02,
                max_area_ratio=1 / 3,
                fill_color=[129.304, 124.070, 112.434],
                fill_std=[68.170, 65.392, 70.418],
            ),
            dict(type='PackInputs'),
        ]
    )
)
