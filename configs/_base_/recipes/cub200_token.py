# With AdamW on one GPU, and the plain augmentation of the data set
_base_ = ['../default_runtime.py', '../datasets/cub200.py', '../schedules/adamw_300e.py']
auto_scale_lr = dict(base_batch_size=128)
