# MLP-Mixer-B/16
mixer_b16 = dict(
    type='ImageClassifier',
    backbone=dict(type='MlpMixer', arch='base', img_size=224, patch_size=16),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
