_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/sgd_300e.py']
