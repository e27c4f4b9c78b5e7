# With AdamW, and the plain augmentation of the data set
_base_ = ['../default_runtime.py', '../datasets/cub200.py', '../schedules/adamw_300e.py']
