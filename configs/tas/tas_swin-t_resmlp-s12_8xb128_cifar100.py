_base_ = [
    '../_base_/recipes/cifar100_resmlp-s12.py',
    '../_base_/models/token/swin-t.py',
    '../_base_/models/token/resmlp-s12.py',
    '../_base_/methods/tas_cifar100.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.resmlp_s12,
    teacher=_base_.swin_t,
    teacher_ckpt='work_dirs/swin-t_cifar100',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
