_base_ = ['../default_runtime.py', '../datasets/cifar100-10k.py', '../schedules/sgd_32px.py']
