_base_ = ['../default_runtime.py', '../datasets/cifar100-32px.py', '../schedules/sgd_32px.py']
