# ViT-B/16, timm's
vit_b = dict(
    type='mmkd_tas.Classifier',
    model='timm:vit_base_patch16_224',
    img_size=224,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)
