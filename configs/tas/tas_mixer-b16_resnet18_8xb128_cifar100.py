_base_ = [
    '../_base_/recipes/cifar100_resnet18.py',
    '../_base_/models/token/mixer-b16.py',
    '../_base_/models/cnn/resnet18.py',
    '../_base_/methods/tas_cifar100.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.resnet18,
    teacher=_base_.mixer_b16,
    teacher_ckpt='work_dirs/mixer-b16_cifar100',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
