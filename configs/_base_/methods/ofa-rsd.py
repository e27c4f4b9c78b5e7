# A mixture: OFA-KD on the logits, RSD on the pooled features
_base_ = './ofa.py'
distiller = dict(
    connectors=dict(decoupler=dict(type='mmkd_tas.Decoupler')),
    distill_losses=dict(loss_rsd=dict(type='mmkd_tas.RSDLoss', loss_weight=0.1)),
    loss_forward_mappings=dict(loss_rsd=dict(preds_S='decoupler', preds_T='teacher.pooled')),
)
