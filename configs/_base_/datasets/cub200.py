# CUB-200-2011 in its official layout; images as those of ImageNet
_base_ = './in1k.py'
data_preprocessor = dict(num_classes=200)
train_dataloader = dict(
    batch_size=128, dataset=dict(type='CUB', data_root='data/CUB_200_2011', split='train')
)
val_dataloader = dict(
    batch_size=128, dataset=dict(type='CUB', data_root='data/CUB_200_2011', split='test')
)
test_dataloader = val_dataloader
