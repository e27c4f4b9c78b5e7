# With the paper's block in the assistant's projector, which costs more
_base_ = './tas.py'
distiller = dict(connectors=dict(assistant=dict(block='swin')))
