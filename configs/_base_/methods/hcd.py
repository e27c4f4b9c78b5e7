# HCD (Xu et al., AAAI 2026): sub-logits of the student's stages and the teacher's feature
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(mapper=dict(type='mmkd_tas.ComplementaryFeatureMapper', num_sub_logits=4)),
    distill_losses=dict(
        loss_hcd=dict(
            type='mmkd_tas.HCDLoss',
            gt_weight=1.0,
            kd_weight=1.0,
            sdd_weight=6.0,
            ol_weight=1.0,
            tau=1.0,
            theta=0.5,
            stage_reduction='sum',
            # the paper has False
            detach_target=True,
        ),
    ),
    loss_forward_mappings=dict(
        loss_hcd=dict(
            sub_logits='mapper',
            preds_S='student.logits',
            preds_T='teacher.logits',
            labels='student.labels',
        ),
    ),
)
