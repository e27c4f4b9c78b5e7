# FitNet (Romero et al., ICLR 2015): each stage of the student regresses that of the teacher
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(regressors=dict(type='mmkd_tas.StageRegressor')),
    distill_losses=dict(loss_hints=dict(type='mmkd_tas.HintLoss', loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_hints=dict(preds_S='regressors.learner', preds_T='regressors.target'),
    ),
)
