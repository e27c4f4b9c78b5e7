_base_ = ['../default_runtime.py', '../datasets/aircraft.py', '../schedules/finetune_20e.py']
