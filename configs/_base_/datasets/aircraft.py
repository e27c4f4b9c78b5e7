# FGVC-Aircraft in its official layout; images as those of ImageNet
_base_ = './in1k.py'
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(type='FGVCAircraft', data_root='data/fgvc-aircraft-2013b', split='trainval'),
)
val_dataloader = dict(
    batch_size=128,
    dataset=dict(type='FGVCAircraft', data_root='data/fgvc-aircraft-2013b', split='test'),
)
test_dataloader = val_dataloader
