_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/finetune_20e.py']
