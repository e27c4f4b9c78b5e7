# With AdamW, and the plain augmentation of the data set
_base_ = ['../default_runtime.py', '../datasets/aircraft.py', '../schedules/adamw_300e.py']
