_base_ = ['../default_runtime.py', '../datasets/cifar100-10k.py', '../schedules/adamw_32px.py']
