# With the authors' exponent for ImageNet
_base_ = './ofa.py'
distiller = dict(
    distill_losses=dict(loss_output=dict(gamma=1.5), loss_exits=dict(gamma=1.5)),
)
