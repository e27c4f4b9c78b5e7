# As for ImageNet: the results on record were made with it
_base_ = './tas_in1k.py'
