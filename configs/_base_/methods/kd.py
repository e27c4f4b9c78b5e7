distiller = dict(
    type='mmrazor.ConfigurableDistiller',
    student_recorders=dict(logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
    teacher_recorders=dict(logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4, loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_kd=dict(
            preds_S=dict(recorder='logits', from_student=True),
            preds_T=dict(recorder='logits', from_student=False),
        )
    ),
)
