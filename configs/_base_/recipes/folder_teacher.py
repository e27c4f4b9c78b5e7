# The fine-tuning of a pretrained teacher, for any batch size
_base_ = ['../default_runtime.py', '../datasets/folder.py', '../schedules/finetune_20e.py']
default_hooks = dict(preflight=dict(new_head=True))
auto_scale_lr = dict(enable=True)
