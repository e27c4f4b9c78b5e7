default_scope = 'mmpretrain'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # two, so that there is another one when a file is damaged
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # one BatchNorm statistic for all processes, when an epoch ends
    sync_buffers=dict(type='SyncBuffersHook'),
    visualization=dict(type='VisualizationHook', enable=False),
    # A distillation brings these; here, for a training of teacher or student alone. None
    # switches one off.
    # classes of data and heads; the teacher's accuracy, once
    preflight=dict(type='mmkd_tas.PreflightHook'),
    # a run that is killed and resumed equals the uninterrupted one
    epoch_seed=dict(type='mmkd_tas.EpochSeedHook'),
    # a loss that is NaN or infinite ends the run; action='skip' leaves the step out
    finite_loss=dict(type='mmkd_tas.FiniteLossHook'),
    progress=dict(type='mmkd_tas.ProgressHook'),
)
custom_hooks = []

env_cfg = dict(
    # the images of a run are of one size
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
