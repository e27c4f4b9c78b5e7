# OFA-KD's recipe for attention and MLP students: 8 GPUs, batches of 128 each; with RandAugment
# in the place of colour jitter, as in timm
_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/adamw_300e.py']
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
                            hparams=dict(pad_val=[129, 124, 112], interpolation=kind),
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
