# A config of mmpretrain that gets a teacher: its model, data and recipe stay what they are.
_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py', '../_base_/methods/tas.py']
model = dict(
    _delete_=True,
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.model,
    input_size=32,
    teacher=dict(type='mmkd_tas.Classifier', model='timm:vit_small_patch16_224', num_classes=10),
    teacher_ckpt='checkpoints/vit-s_cifar10.pth',
    teacher_input=dict(size=224),
    distiller=_base_.distiller,
)
