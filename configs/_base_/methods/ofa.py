# OFA-KD (Hao et al., NeurIPS 2023): exit branches and the output learn the teacher's logits
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(exits=dict(type='mmkd_tas.ExitBranch')),
    distill_losses=dict(
        loss_output=dict(type='mmkd_tas.OFALoss', gamma=1.0, tau=1.0, loss_weight=1.0),
        loss_exits=dict(type='mmkd_tas.OFALoss', gamma=1.0, tau=1.0, loss_weight=1.0),
    ),
    loss_forward_mappings=dict(
        loss_output=dict(
            preds_S='student.logits', preds_T='teacher.logits', labels='student.labels'
        ),
        loss_exits=dict(preds_S='exits', preds_T='teacher.logits', labels='student.labels'),
    ),
)
