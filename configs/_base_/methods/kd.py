# Knowledge distillation on the logits (Hinton et al., 2015): T^2 KL(p_t || p_s)
distiller = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4, loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits'),
    ),
)
