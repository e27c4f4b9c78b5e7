# OFA-KD's recipe for CNN students: 8 GPUs, batches of 128 each
_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/sgd_300e.py']
train_dataloader = dict(drop_last=True)
