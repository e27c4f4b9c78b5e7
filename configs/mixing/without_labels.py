# More images, without labels: the student learns from the teacher's logits and features only.
_base_ = './image_folder.py'
model = dict(
    calculate_student_loss=False,
    distiller=dict(
        _delete_=True,
        type='mmkd_tas.StageDistiller',
        connectors=dict(decoupler=dict(type='mmkd_tas.Decoupler')),
        distill_losses=dict(
            loss_kd=dict(type='mmrazor.KLDivergence', tau=4),
            loss_rsd=dict(type='mmkd_tas.RSDLoss', loss_weight=0.1),
        ),
        loss_forward_mappings=dict(
            loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits'),
            loss_rsd=dict(preds_S='decoupler', preds_T='teacher.pooled'),
        ),
    ),
)
train_dataloader = dict(dataset=dict(data_prefix='unlabelled', with_label=False))
