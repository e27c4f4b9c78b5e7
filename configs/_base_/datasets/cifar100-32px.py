# CIFAR-100 at its own size, for small models
_base_ = './cifar100.py'
input_size = 32

train_pipeline = [
    dict(type='RandomCrop', crop_size=input_size, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(
        _delete_=True,
        type='mmkd_tas.CIFAR100Split',
        data_root='data/cifar100',
        split='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=4,
    dataset=dict(
        _delete_=True,
        type='mmkd_tas.CIFAR100Split',
        data_root='data/cifar100',
        split='test',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
