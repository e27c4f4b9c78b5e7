# ResMLP-S12, timm's
resmlp_s12 = dict(
    type='TimmClassifier',
    model_name='resmlp_12_224',
    img_size=224,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)
