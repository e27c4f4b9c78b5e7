_base_ = ['../default_runtime.py', '../datasets/cifar100-32px.py', '../schedules/adamw_32px.py']
