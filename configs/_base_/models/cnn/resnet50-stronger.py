# ResNet-50, timm's, for OFA-KD's stronger recipe: with drop-path and binary cross-entropy
resnet50_stronger = dict(
    # whose loss is a mean over images and classes, as timm's
    type='TimmClassifier',
    model_name='resnet50',
    drop_path_rate=0.05,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.0, mode='original', use_sigmoid=True),
)
