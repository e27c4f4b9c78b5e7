# A mixture: TAS and HCD at once; the sub-logits averaged over the stages
_base_ = './tas.py'
distiller = dict(
    connectors=dict(mapper=dict(type='mmkd_tas.ComplementaryFeatureMapper')),
    distill_losses=dict(loss_hcd=dict(type='mmkd_tas.HCDLoss', stage_reduction='mean')),
    loss_forward_mappings=dict(
        loss_hcd=dict(
            sub_logits='mapper',
            preds_S='student.logits',
            preds_T='teacher.logits',
            labels='student.labels',
        ),
    ),
)
