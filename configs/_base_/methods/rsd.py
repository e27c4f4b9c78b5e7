# RSD (ICCV 2025, arXiv 2507.21844): pooled features, without what is redundant in them
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(decoupler=dict(type='mmkd_tas.Decoupler', expansion=2)),
    distill_losses=dict(loss_rsd=dict(type='mmkd_tas.RSDLoss', kappa=0.01, loss_weight=0.1)),
    loss_forward_mappings=dict(
        loss_rsd=dict(preds_S='decoupler', preds_T='teacher.pooled'),
    ),
)
