# CRD (Tian et al., ICLR 2020): a feature has to pick out its image among many of the data set
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(embeddings=dict(type='mmkd_tas.PairProjector', width=128)),
    distill_losses=dict(
        loss_crd=dict(
            type='mmkd_tas.CRDLoss',
            width=128,
            num_negatives=16384,
            tau=0.07,
            momentum=0.5,
            loss_weight=1.0,
        )
    ),
    loss_forward_mappings=dict(
        loss_crd=dict(
            preds_S='embeddings.learner',
            preds_T='embeddings.target',
            indices='student.indices',
            labels='student.labels',
        ),
    ),
)
