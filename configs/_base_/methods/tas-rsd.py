# A mixture: TAS with RSD instead of InfoNCE
_base_ = './tas.py'
distiller = dict(
    connectors=dict(
        teacher_student=dict(type='mmkd_tas.Decoupler'),
        teacher_assistant=dict(type='mmkd_tas.Decoupler'),
        assistant_student=dict(type='mmkd_tas.Decoupler'),
    ),
    distill_losses=dict(
        loss_ts_features=dict(type='mmkd_tas.RSDLoss', loss_weight=0.1, _delete_=True),
        loss_ta_features=dict(type='mmkd_tas.RSDLoss', loss_weight=0.1, _delete_=True),
        loss_as_features=dict(type='mmkd_tas.RSDLoss', loss_weight=0.1, _delete_=True),
    ),
    loss_forward_mappings=dict(
        loss_ts_features=dict(preds_S='teacher_student', preds_T='teacher.pooled'),
        loss_ta_features=dict(preds_S='teacher_assistant', preds_T='teacher.pooled'),
        loss_as_features=dict(preds_S='assistant_student', preds_T='assistant.pooled'),
    ),
)
