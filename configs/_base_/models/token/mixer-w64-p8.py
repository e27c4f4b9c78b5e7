# A small MLP-Mixer for images of 32 pixels, in patches of 8: width 64, 6 blocks
mixer_w64_p8 = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MlpMixer',
        arch=dict(embed_dims=64, num_layers=6, tokens_mlp_dims=64, channels_mlp_dims=256),
        img_size=32,
        patch_size=8,
    ),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(type='LinearClsHead', in_channels=64),
)
