# RKD (Park et al., CVPR 2019): distances and angles between the images of a batch
distiller = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(
        loss_rkd=dict(type='mmkd_tas.RKDLoss', distance_weight=25.0, angle_weight=50.0)
    ),
    loss_forward_mappings=dict(
        loss_rkd=dict(preds_S='student.pooled', preds_T='teacher.pooled'),
    ),
)
