# TAS / FBT (Li et al., ICCV 2025): L(t -> s) + L(t -> a) + L(a -> s), where a is the
# assistant, and L the sum of InfoNCE on pooled features and OFA on logits
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(
        assistant=dict(type='mmkd_tas.HybridAssistant', split=3),
        teacher_student=dict(
            type='mmkd_tas.PairProjector', inputs=['student.pooled', 'teacher.pooled']
        ),
        teacher_assistant=dict(
            type='mmkd_tas.PairProjector', inputs=['assistant.pooled', 'teacher.pooled']
        ),
        assistant_student=dict(
            type='mmkd_tas.PairProjector', inputs=['student.pooled', 'assistant.pooled']
        ),
    ),
    distill_losses=dict(
        loss_ts_features=dict(type='mmkd_tas.InfoNCELoss', tau=0.07, loss_weight=1.0),
        loss_ts_logits=dict(type='mmkd_tas.OFALoss', gamma=1.0, tau=1.0, loss_weight=1.0),
        loss_ta_features=dict(type='mmkd_tas.InfoNCELoss', tau=0.07, loss_weight=1.0),
        loss_ta_logits=dict(type='mmkd_tas.OFALoss', gamma=1.0, tau=1.0, loss_weight=1.0),
        loss_as_features=dict(type='mmkd_tas.InfoNCELoss', tau=0.07, loss_weight=1.0),
        loss_as_logits=dict(type='mmkd_tas.OFALoss', gamma=1.0, tau=1.0, loss_weight=1.0),
        student_acc=dict(type='mmkd_tas.LogitAccuracy'),
        assistant_acc=dict(type='mmkd_tas.LogitAccuracy'),
        teacher_acc=dict(type='mmkd_tas.LogitAccuracy'),
    ),
    loss_forward_mappings=dict(
        loss_ts_features=dict(preds_S='teacher_student.learner', preds_T='teacher_student.target'),
        loss_ts_logits=dict(
            preds_S='student.logits', preds_T='teacher.logits', labels='student.labels'
        ),
        loss_ta_features=dict(
            preds_S='teacher_assistant.learner', preds_T='teacher_assistant.target'
        ),
        loss_ta_logits=dict(
            preds_S='assistant.logits', preds_T='teacher.logits', labels='student.labels'
        ),
        loss_as_features=dict(
            preds_S='assistant_student.learner', preds_T='assistant_student.target'
        ),
        loss_as_logits=dict(
            preds_S='student.logits', preds_T='assistant.logits', labels='student.labels'
        ),
        student_acc=dict(preds='student.logits', labels='student.labels'),
        assistant_acc=dict(preds='assistant.logits', labels='student.labels'),
        teacher_acc=dict(preds='teacher.logits', labels='student.labels'),
    ),
)
