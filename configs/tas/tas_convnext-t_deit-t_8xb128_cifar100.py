_base_ = [
    '../_base_/recipes/cifar100_token.py',
    '../_base_/models/cnn/convnext-t.py',
    '../_base_/models/token/deit-t.py',
    '../_base_/methods/tas_cifar100.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.deit_t,
    teacher=_base_.convnext_t,
    teacher_ckpt='work_dirs/convnext-t_cifar100',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
