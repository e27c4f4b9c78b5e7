_base_ = [
    '../_base_/recipes/cub200_cnn.py',
    '../_base_/models/token/swin-t.py',
    '../_base_/models/cnn/resnet18.py',
    '../_base_/methods/tas_cub200.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.resnet18,
    teacher=_base_.swin_t,
    teacher_ckpt='work_dirs/swin-t_cub200',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
