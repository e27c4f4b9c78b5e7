# A small ViT for images of 32 pixels, in patches of 8: width 64, 6 blocks, averaged tokens
vit_w64_p8 = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=6, num_heads=4, feedforward_channels=256),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
    ),
    head=dict(type='LinearClsHead', in_channels=64),
)
