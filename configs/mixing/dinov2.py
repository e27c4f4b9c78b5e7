# No labels and no logits: a student learns the features of DINOv2 from a folder of images.
# Any other method on features will do (fitnet, rkd, cc, kd-features).
_base_ = ['../_base_/recipes/in1k_cnn.py', '../_base_/methods/rsd.py']
model = dict(
    type='mmkd_tas.CrossArchDistill',
    calculate_student_loss=False,
    architecture=dict(type='mmkd_tas.Classifier', model='timm:resnet18', num_classes=0),
    teacher=dict(
        type='mmkd_tas.Classifier',
        model='timm:vit_small_patch14_dinov2',  # or 'hf:facebook/dinov2-small'
        num_classes=0,
        pretrained=True,
        img_size=224,
    ),
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/mine',
        data_prefix='unlabelled',
        with_label=False,
        pipeline=_base_.train_pipeline,
    )
)
# A student without a head predicts nothing that could be validated.
val_dataloader = None
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
