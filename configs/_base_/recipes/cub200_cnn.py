_base_ = ['../default_runtime.py', '../datasets/cub200.py', '../schedules/sgd_300e.py']
