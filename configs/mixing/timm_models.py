# Both models from timm, the student at the size of the images (32 pixels), the teacher at 224.
_base_ = ['../_base_/recipes/cifar100_cnn.py', '../_base_/methods/tas.py']
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=dict(type='mmkd_tas.Classifier', model='timm:mobilenetv3_small_100'),
    teacher=dict(type='mmkd_tas.Classifier', model='timm:convnext_tiny'),
    teacher_ckpt='checkpoints/convnext-t_cifar100.pth',
    teacher_input=dict(size=224),
    distiller=_base_.distiller,
    input_size=32,
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='RandomCrop', crop_size=32, padding=4),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]
    )
)
val_dataloader = dict(dataset=dict(pipeline=[dict(type='PackInputs')]))
test_dataloader = val_dataloader
