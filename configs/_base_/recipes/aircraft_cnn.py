# That of CIFAR-100 on one GPU
_base_ = ['../default_runtime.py', '../datasets/aircraft.py', '../schedules/sgd_300e.py']
auto_scale_lr = dict(base_batch_size=128)
