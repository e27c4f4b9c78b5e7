# KD for a teacher without logits: the D channels of its pooled feature stand in for classes
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(projector=dict(type='mmkd_tas.PairProjector')),
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=1, loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_kd=dict(preds_S='projector.learner', preds_T='projector.target'),
    ),
)
