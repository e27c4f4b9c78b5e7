"""The smallest sensible model of every family, from mmpretrain and timm."""

import copy
from dataclasses import dataclass

CLASSES = 5


@dataclass(frozen=True)
class Entry:
    """A model to test with.

    Attributes:
        cfg: Its config.
        size: Side of the images.
        oblong: Another size that is not square, where the family takes one; for
            models that are built for a size, with the keys that change.
    """

    cfg: dict
    size: int
    oblong: tuple[int, int] | None = None
    oblong_keys: dict | None = None


def classifier(backbone, neck='GlobalAveragePooling', head=None, dim=2, **head_keys):
    """An ImageClassifier of mmpretrain."""
    head = dict(type=head or 'LinearClsHead', num_classes=CLASSES, **head_keys)
    neck = neck and dict(type=neck, dim=dim)
    return dict(type='ImageClassifier', backbone=backbone, neck=neck, head=head)


def timm(name, **keys):
    """A TimmClassifier."""
    return dict(type='TimmClassifier', model_name=name, num_classes=CLASSES, **keys)


SMALL = dict(depth=4, embed_dim=24, num_heads=2)


def vit(**keys):
    arch = dict(embed_dims=24, num_layers=6, num_heads=2, feedforward_channels=48)
    return dict(type='VisionTransformer', arch=arch, img_size=32, patch_size=8, **keys)


def swin(embed_dims):
    """The small Swins of OFA-KD: nano has 64, pico 48 (here, narrower ones)."""
    arch = dict(embed_dims=embed_dims, depths=[2, 2, 2, 2], num_heads=[2, 4, 8, 16])
    return dict(type='SwinTransformer', arch=arch, img_size=64, window_size=7, pad_small_map=True)


CONV = (64, 96)
ZOO = {
    # --- mmpretrain
    'resnet': Entry(
        classifier(dict(type='ResNet', depth=18, base_channels=8), in_channels=64), 64, CONV
    ),
    'resnet_cifar': Entry(
        classifier(
            dict(type='ResNet_CIFAR', depth=18, base_channels=8, stem_channels=8), in_channels=64
        ),
        32,
        (32, 48),
    ),
    'mobilenet_v2': Entry(
        classifier(dict(type='MobileNetV2', widen_factor=0.25), in_channels=1280), 64, CONV
    ),
    'mobilenet_v3': Entry(
        classifier(
            dict(type='MobileNetV3', arch='small_050'),
            head='StackedLinearClsHead',
            in_channels=288,
            mid_channels=[32],
            act_cfg=dict(type='HSwish'),
        ),
        64,
        CONV,
    ),
    'convnext': Entry(
        classifier(
            dict(type='ConvNeXt', arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32])),
            neck=None,
            in_channels=32,
        ),
        64,
        CONV,
    ),
    'convnext_v2': Entry(
        classifier(
            dict(
                type='ConvNeXt',
                arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]),
                use_grn=True,
                layer_scale_init_value=0.0,
            ),
            neck=None,
            in_channels=32,
        ),
        64,
        CONV,
    ),
    'regnet': Entry(
        classifier(
            dict(
                type='RegNet',
                arch=dict(w0=8, wa=8.0, wm=2.0, group_w=8, depth=6, bot_mul=1.0),
            ),
            in_channels=64,
        ),
        64,
        CONV,
    ),
    'densenet': Entry(
        classifier(
            dict(
                type='DenseNet',
                arch=dict(growth_rate=4, depths=[2, 2, 2, 2], init_channels=8),
            ),
            in_channels=16,
        ),
        64,
        CONV,
    ),
    'vgg': Entry(
        classifier(
            dict(type='VGG', depth=11, num_classes=-1, norm_cfg=dict(type='BN')), in_channels=512
        ),
        64,
        CONV,
    ),
    'shufflenet_v2': Entry(
        classifier(dict(type='ShuffleNetV2', widen_factor=0.5), in_channels=1024), 64, CONV
    ),
    'efficientnet': Entry(
        classifier(dict(type='EfficientNet', arch='b0'), in_channels=1280), 64, CONV
    ),
    'repvgg': Entry(
        classifier(
            dict(
                type='RepVGG',
                arch=dict(
                    num_blocks=[1, 1, 2, 1],
                    width_factor=[0.125, 0.125, 0.125, 0.125],
                    group_layer_map=None,
                    se_cfg=None,
                    stem_channels=8,
                ),
            ),
            in_channels=64,
        ),
        64,
        CONV,
    ),
    'poolformer': Entry(
        classifier(
            dict(
                type='PoolFormer',
                arch=dict(
                    layers=[1, 1, 1, 1],
                    embed_dims=[8, 16, 24, 32],
                    mlp_ratios=[2, 2, 2, 2],
                    layer_scale_init_value=1e-5,
                ),
            ),
            in_channels=32,
        ),
        64,
        CONV,
    ),
    'vit': Entry(
        classifier(vit(), neck=None, head='VisionTransformerClsHead', in_channels=24),
        32,
        (32, 64),
        {'backbone.img_size': (32, 64)},
    ),
    'vit_average': Entry(
        classifier(vit(out_type='avg_featmap', with_cls_token=False), neck=None, in_channels=24),
        32,
    ),
    'deit_distilled': Entry(
        classifier(
            dict(vit(), type='DistilledVisionTransformer'),
            neck=None,
            head='DeiTClsHead',
            in_channels=24,
        ),
        32,
    ),
    'beit': Entry(
        classifier(
            dict(
                type='BEiTViT',
                arch=dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48),
                img_size=32,
                patch_size=8,
                out_type='avg_featmap',
                use_abs_pos_emb=False,
                use_rel_pos_bias=False,
                use_shared_rel_pos_bias=True,  # a table that the tail needs, too
            ),
            neck=None,
            in_channels=24,
        ),
        32,
    ),
    'eva02': Entry(
        classifier(
            dict(
                type='ViTEVA02',
                arch=dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48),
                img_size=32,
                patch_size=8,
                out_type='avg_featmap',
            ),
            neck=None,
            in_channels=24,
        ),
        32,
    ),
    'swin_nano': Entry(classifier(swin(16), in_channels=128), 64, (64, 96)),
    'swin_pico': Entry(classifier(swin(32), in_channels=256), 64, (64, 96)),
    'mlp_mixer': Entry(
        classifier(
            dict(
                type='MlpMixer',
                arch=dict(embed_dims=24, num_layers=6, tokens_mlp_dims=16, channels_mlp_dims=48),
                img_size=32,
                patch_size=8,
            ),
            dim=1,
            in_channels=24,
        ),
        32,
    ),
    'twins': Entry(
        classifier(
            dict(
                type='PCPVT',
                arch=dict(
                    embed_dims=[8, 16, 24, 32],
                    depths=[1, 1, 1, 1],
                    num_heads=[1, 2, 2, 4],
                    patch_sizes=[4, 2, 2, 2],
                    strides=[4, 2, 2, 2],
                    mlp_ratios=[2, 2, 2, 2],
                    sr_ratios=[8, 4, 2, 1],
                ),
            ),
            in_channels=32,
        ),
        64,
        CONV,
    ),
    'davit': Entry(
        classifier(
            dict(
                type='DaViT',
                arch=dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 4]),
                pad_small_map=True,
            ),
            in_channels=64,
        ),
        64,
        CONV,
    ),
    'timm_backbone': Entry(
        classifier(dict(type='TIMMBackbone', model_name='test_resnet'), in_channels=96), 64, CONV
    ),
    # --- timm
    'timm_resnet': Entry(timm('test_resnet'), 64, CONV),
    'timm_mobilenetv2': Entry(timm('mobilenetv2_035'), 64, CONV),
    'timm_mobilenetv3': Entry(timm('mobilenetv3_small_050'), 64, CONV),
    'timm_efficientnet': Entry(timm('test_efficientnet'), 64, CONV),
    'timm_convnext': Entry(timm('test_convnext'), 64, CONV),
    'timm_convnextv2': Entry(timm('test_convnext2'), 64, CONV),
    'timm_regnet': Entry(timm('regnetx_002'), 64, CONV),
    'timm_densenet': Entry(timm('densenet121', growth_rate=4, block_config=(1, 1, 1, 1)), 64, CONV),
    'timm_vgg': Entry(timm('vgg11', mlp_ratio=0.02), 64, CONV),
    'timm_repvgg': Entry(timm('repvgg_a0'), 64, CONV),
    'timm_ghostnet': Entry(timm('ghostnet_050'), 64, CONV),
    'timm_vit': Entry(
        timm('vit_tiny_patch16_224', img_size=32, patch_size=8, **SMALL),
        32,
        (32, 64),
        {'img_size': (32, 64)},
    ),
    'timm_deit': Entry(
        timm('deit_tiny_patch16_224', img_size=32, patch_size=8, **SMALL),
        32,
    ),
    'timm_deit_distilled': Entry(
        timm(
            'deit_tiny_distilled_patch16_224',
            img_size=32,
            patch_size=8,
            **SMALL,
        ),
        32,
    ),
    'timm_beit': Entry(
        timm('beit_base_patch16_224', img_size=32, patch_size=8, **SMALL),
        32,
    ),
    'timm_eva02': Entry(
        timm('eva02_tiny_patch14_224', img_size=28, patch_size=7, **SMALL),
        28,
    ),
    'timm_swin': Entry(
        timm(
            'swin_tiny_patch4_window7_224',
            img_size=64,
            embed_dim=12,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 2, 4),
        ),
        64,
    ),
    'timm_mixer': Entry(timm('mixer_s32_224', img_size=64), 64),
    'timm_resmlp': Entry(timm('resmlp_12_224', img_size=64), 64),
    'timm_gmlp': Entry(timm('gmlp_ti16_224', img_size=64), 64),
    'timm_cait': Entry(timm('cait_xxs24_224', img_size=64), 64),
    'timm_xcit': Entry(timm('xcit_nano_12_p16_224', img_size=64), 64),
    'timm_pvt_v2': Entry(timm('pvt_v2_b0'), 64, CONV),
    'timm_twins': Entry(timm('twins_svt_small', img_size=64), 64),
    'timm_poolformer': Entry(timm('poolformer_s12'), 64, CONV),
    'timm_maxvit': Entry(timm('test_maxvit', img_size=64), 64),
    'timm_coatnet': Entry(timm('test_coatnet', img_size=64), 64),
    'timm_volo': Entry(timm('volo_d1_224', img_size=64), 64),
    'timm_mobilevit': Entry(timm('mobilevit_xxs'), 64),
}


def of_channels(name, channels):
    """Return the config of a model for images of that many channels."""
    cfg = copy.deepcopy(ZOO[name].cfg)
    if channels == 3:
        return cfg
    if cfg['type'] == 'TimmClassifier':
        cfg['in_chans'] = channels
    else:
        cfg['backbone']['in_channels'] = channels
    return cfg
