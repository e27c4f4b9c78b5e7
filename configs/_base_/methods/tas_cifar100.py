# As for ImageNet
_base_ = './tas_in1k.py'
