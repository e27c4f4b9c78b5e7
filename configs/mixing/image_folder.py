# Images of your own: data/mine/train/CLASS/*.jpg and data/mine/val/CLASS/*.jpg
_base_ = ['../_base_/recipes/in1k_cnn.py', '../_base_/methods/tas.py']
data_preprocessor = dict(num_classes=5)
model = dict(
    type='mmkd_tas.CrossArchDistill',
    architecture=dict(type='mmkd_tas.Classifier', model='timm:resnet18'),
    teacher=dict(type='mmkd_tas.Classifier', model='timm:swin_tiny_patch4_window7_224'),
    teacher_ckpt='checkpoints/swin-t_mine.pth',
    distiller=_base_.distiller,
    input_size=_base_.input_size,
)
folder = dict(_delete_=True, type='CustomDataset', data_root='data/mine')
train_dataloader = dict(dataset=dict(**folder, data_prefix='train', pipeline=_base_.train_pipeline))
val_dataloader = dict(dataset=dict(**folder, data_prefix='val', pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
