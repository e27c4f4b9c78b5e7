_base_ = [
    '../_base_/recipes/in1k_resnet50-stronger.py',
    '../_base_/models/token/vit-b.py',
    '../_base_/models/cnn/resnet50-stronger.py',
    '../_base_/methods/ofa_in1k.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.resnet50_stronger,
    teacher=_base_.vit_b,
    teacher_ckpt='checkpoints/vit-b_in1k.pth',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
