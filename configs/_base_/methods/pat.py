# PAT (Lin et al., ICCV 2025): the student's stages, blended by attention, and a teacher whose
# prompts know how far the student is
distiller = dict(
    type='mmkd_tas.StageDistiller',
    connectors=dict(
        regions=dict(type='mmkd_tas.RegionAttention', width=512, regions=4, num_heads=8),
        prompted=dict(
            type='mmkd_tas.PromptedTeacher',
            inputs=[
                'regions',
                'teacher.stage1',
                'teacher.stage2',
                'teacher.stage3',
                'teacher.stage4',
            ],
        ),
    ),
    distill_losses=dict(
        loss_kd=dict(type='mmrazor.KLDivergence', tau=1, loss_weight=1.0),
        # the prompts come towards the student ...
        loss_features=dict(
            type='mmkd_tas.HierarchicalContextLoss', loss_weight=1.0, detach_target=False
        ),
        # ... as far as the teacher goes on saying the same
        loss_prompts=dict(type='mmrazor.KLDivergence', tau=1, loss_weight=1.0),
    ),
    loss_forward_mappings=dict(
        loss_kd=dict(preds_S='student.logits', preds_T='teacher.logits'),
        loss_features=dict(preds_S='regions', preds_T='prompted.features'),
        loss_prompts=dict(preds_S='prompted.logits', preds_T='teacher.logits'),
    ),
)
