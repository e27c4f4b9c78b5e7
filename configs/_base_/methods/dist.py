# DIST (Huang et al., NeurIPS 2022): MMRazor's loss; correlations within images and classes
distiller = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(loss_dist=dict(type='mmrazor.DISTLoss', tau=1, loss_weight=2.0)),
    loss_forward_mappings=dict(
        loss_dist=dict(logits_S='student.logits', logits_T='teacher.logits'),
    ),
)
