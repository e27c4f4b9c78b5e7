_base_ = [
    '../_base_/recipes/in1k_token.py',
    '../_base_/models/token/deit-s.py',
    '../_base_/models/token/deit-t.py',
    '../_base_/methods/tas_in1k.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.deit_t,
    teacher=_base_.deit_s,
    teacher_ckpt='checkpoints/deit-s_in1k.pth',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
