_base_ = [
    '../_base_/recipes/in1k_resnet18.py',
    '../_base_/models/token/swin-t.py',
    '../_base_/models/cnn/resnet18.py',
    '../_base_/methods/tas_in1k.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.resnet18,
    teacher=_base_.swin_t,
    teacher_ckpt='checkpoints/swin-t_in1k.pth',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
