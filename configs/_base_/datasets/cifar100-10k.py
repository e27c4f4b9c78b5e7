# CIFAR-100 at its own size, a fifth of the training images
_base_ = './cifar100-32px.py'
train_dataloader = dict(dataset=dict(num_train=10000))
