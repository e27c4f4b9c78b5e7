# OFA-KD's for CNN students of CIFAR-100: one GPU, batches of 128
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3),
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=3, by_epoch=True, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR', begin=3, eta_min=1e-3, by_epoch=True, convert_to_iter_based=True
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
