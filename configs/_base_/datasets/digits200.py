# The first 200 training images of the digits: few enough that a student has something to gain
_base_ = './digits.py'
train_dataloader = dict(batch_size=20, dataset=dict(num_train=200))
