_base_ = ['../default_runtime.py', '../datasets/aircraft.py', '../schedules/finetune_20e.py']
default_hooks = dict(preflight=dict(new_head=True))
