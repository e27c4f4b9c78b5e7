# ViT-S/16, timm's
vit_s = dict(
    type='mmkd_tas.Classifier',
    model='timm:vit_small_patch16_224',
    img_size=224,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
)
