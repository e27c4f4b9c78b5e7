# A small MLP-Mixer for images of 16 pixels: width 64, 6 blocks
mixer_w64 = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MlpMixer',
        arch=dict(embed_dims=64, num_layers=6, tokens_mlp_dims=64, channels_mlp_dims=256),
        img_size=16,
        patch_size=4,
    ),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(type='LinearClsHead', in_channels=64),
)
