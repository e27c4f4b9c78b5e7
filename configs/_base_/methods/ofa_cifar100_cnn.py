# With the weight that the authors gave the exits of CNN students on CIFAR-100
_base_ = './ofa.py'
distiller = dict(distill_losses=dict(loss_exits=dict(loss_weight=0.1)))
