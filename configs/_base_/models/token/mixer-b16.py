# MLP-Mixer-B/16
mixer_b16 = dict(
    type='ImageClassifier',
    # of the weights that timm and mmpretrain publish
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='MlpMixer', arch='base', img_size=224, patch_size=16),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
