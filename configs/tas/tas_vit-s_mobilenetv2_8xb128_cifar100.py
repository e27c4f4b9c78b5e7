_base_ = [
    '../_base_/recipes/cifar100_cnn.py',
    '../_base_/models/token/vit-s.py',
    '../_base_/models/cnn/mobilenetv2.py',
    '../_base_/methods/tas_cifar100.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.mobilenetv2,
    teacher=_base_.vit_s,
    teacher_ckpt='work_dirs/vit-s_cifar100',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
