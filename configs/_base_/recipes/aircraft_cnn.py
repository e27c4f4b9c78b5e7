_base_ = ['../default_runtime.py', '../datasets/aircraft.py', '../schedules/sgd_300e.py']
