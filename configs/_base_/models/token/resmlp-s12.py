# ResMLP-S12, timm's
resmlp_s12 = dict(
    type='mmkd_tas.Classifier',
    model='timm:resmlp_12_224',
    img_size=224,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)
