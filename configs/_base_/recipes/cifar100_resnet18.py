# With the learning rate that the authors of OFA-KD gave for ResNet-18, and timm's test images
_base_ = './cifar100_cnn.py'
optim_wrapper = dict(optimizer=dict(lr=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=4, by_epoch=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True),
]
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type='ResizeEdge',
                scale=256,
                edge='short',
                backend='pillow',
                interpolation='bilinear',
            ),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ]
    )
)
test_dataloader = val_dataloader
