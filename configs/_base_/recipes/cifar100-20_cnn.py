_base_ = ['../default_runtime.py', '../datasets/cifar100-20.py', '../schedules/sgd_32px.py']
