_base_ = [
    '../_base_/recipes/digits200_token.py',
    '../_base_/models/cnn/resnet18-w16.py',
    '../_base_/models/token/vit-w64.py',
    '../_base_/methods/tas_digits200.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.vit_w64,
    teacher=_base_.resnet18_w16,
    teacher_ckpt='work_dirs/resnet18-w16_digits',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
