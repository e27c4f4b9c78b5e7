"""A whole distillation in a few seconds, with every source of randomness."""

_base_ = '../../configs/_base_/default_runtime.py'

num_classes = 10
data_preprocessor = dict(
    num_classes=10, mean=[77.7] * 3, std=[94.8] * 3, to_rgb=False, to_onehot=False
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(
        type='mmkd_tas.Digits',
        image_size=16,
        num_train=40,
        pipeline=[
            dict(type='RandomCrop', crop_size=16, padding=2),
            dict(type='RandomErasing', erase_prob=0.5, mode='rand'),
            dict(type='PackInputs'),
        ],
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    dataset=dict(
        type='mmkd_tas.Digits', split='test', image_size=16, pipeline=[dict(type='PackInputs')]
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = dict(type='OneCycleLR', eta_max=1e-3, total_steps=15, by_epoch=False)
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=1))

logits = dict(type='mmrazor.ModuleOutputs', source='head.fc')
model = dict(
    type='mmkd_tas.CrossArchDistill',
    random_teacher=True,
    architecture=dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32),
            img_size=16,
            patch_size=4,
            drop_rate=0.1,
            drop_path_rate=0.1,
            out_type='avg_featmap',
        ),
        head=dict(type='LinearClsHead', in_channels=16, num_classes=10),
        train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]),
    ),
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', in_channels=32, num_classes=10),
    ),
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(logits=logits),
        teacher_recorders=dict(logits=logits),
        distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=2)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                preds_S=dict(recorder='logits', from_student=True),
                preds_T=dict(recorder='logits', from_student=False),
            )
        ),
    ),
)
