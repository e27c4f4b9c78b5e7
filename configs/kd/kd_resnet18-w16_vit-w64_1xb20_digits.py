_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_token.py',
    '../_base_/pairs/resnet18-w16_vit-w64.py',
    '../_base_/methods/kd.py',
]
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/resnet18-w16_1xb50_digits/epoch_20.pth',
    distiller=_base_.distiller,
)
train_dataloader = dict(batch_size=20, dataset=dict(num_train=200))
