# An MLP-Mixer for images of 32 pixels, in patches of 4: width 192, 12 blocks
mixer_w192 = dict(
    type='ImageClassifier',
    backbone=dict(
        type='MlpMixer',
        arch=dict(embed_dims=192, num_layers=12, tokens_mlp_dims=96, channels_mlp_dims=768),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.1,
    ),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(
        type='LinearClsHead',
        in_channels=192,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
