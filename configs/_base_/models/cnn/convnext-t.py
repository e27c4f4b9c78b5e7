# ConvNeXt-T
convnext_t = dict(
    type='ImageClassifier',
    backbone=dict(type='ConvNeXt', arch='tiny'),
    head=dict(
        type='LinearClsHead',
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
