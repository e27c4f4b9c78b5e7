_base_ = [
    '../_base_/recipes/in1k_cnn.py',
    '../_base_/models/token/deit-t.py',
    '../_base_/models/cnn/mobilenetv2.py',
    '../_base_/methods/tas_in1k.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.mobilenetv2,
    teacher=_base_.deit_t,
    teacher_ckpt='checkpoints/deit-t_in1k.pth',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
