# which schedules the two are trained with
families = dict(teacher='cnn', student='token')
teacher = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=16, stem_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=128, num_classes=10),
)
student = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=256),
        img_size=16,
        patch_size=4,
        out_type='avg_featmap',
    ),
    head=dict(type='LinearClsHead', in_channels=64, num_classes=10),
)
