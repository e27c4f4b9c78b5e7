# OFA-KD's for CNN students of CIFAR-100: batches of 1,024 in all
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=2e-3),
    paramwise_cfg=dict(bias_decay_mult=0.0, flat_decay_mult=0.0),
)
# by epoch, as in timm: the cosine counts from epoch 0 on, and the warm-up covers its beginning
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, end=4, by_epoch=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)
