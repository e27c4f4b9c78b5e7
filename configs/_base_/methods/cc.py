# CC (Peng et al., ICCV 2019), in the form of the tables of CRD and OFA-KD
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(embeddings=dict(type='mmkd_tas.PairProjector', width=128)),
    distill_losses=dict(loss_cc=dict(type='mmkd_tas.CCLoss', loss_weight=0.02)),
    loss_forward_mappings=dict(
        loss_cc=dict(preds_S='embeddings.learner', preds_T='embeddings.target'),
    ),
)
