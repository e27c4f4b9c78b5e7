# Decoupled knowledge distillation (Zhao et al., CVPR 2022): the paper's temperature and
# weights for CIFAR-100
distiller = dict(
    type='mmkd_tas.StageDistiller',
    distill_losses=dict(
        loss_dkd=dict(type='mmkd_tas.DKDLoss', tau=4, alpha=1.0, beta=8.0, loss_weight=1.0)
    ),
    loss_forward_mappings=dict(
        loss_dkd=dict(preds_S='student.logits', preds_T='teacher.logits', labels='student.labels'),
    ),
)
