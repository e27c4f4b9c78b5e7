# The first 20 classes of CIFAR-100 at its own size: what a CPU can do
_base_ = './cifar100-32px.py'
data_preprocessor = dict(num_classes=20)
train_dataloader = dict(dataset=dict(num_classes=20))
val_dataloader = dict(dataset=dict(num_classes=20))
test_dataloader = val_dataloader
