# RSD (ICCV 2025, arXiv 2507.21844) on logits alone: nothing to decouple, no parameters
distiller = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(loss_rsd=dict(type='mmkd_tas.RSDLoss', kappa=0.01, loss_weight=0.1)),
    loss_forward_mappings=dict(
        loss_rsd=dict(preds_S='student.logits', preds_T='teacher.logits'),
    ),
)
