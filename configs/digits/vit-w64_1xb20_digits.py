_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_token.py',
    '../_base_/pairs/resnet18-w16_vit-w64.py',
]
model = _base_.student
train_dataloader = dict(batch_size=20, dataset=dict(num_train=200))
