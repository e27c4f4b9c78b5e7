# The first 20 classes of CIFAR-100 (10,000 training and 2,000 test images) on two CPU cores in
# two hours: small models at 32 pixels, bfloat16; 30 epochs for teachers, 5 for students
_base_ = './rows.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w128',
    'CNN -> MLP': 'resnet18-w16_mixer-w128',
    'ViT -> CNN': 'vit-w128_resnet18-w8',
    'MLP -> CNN': 'mixer-w128_resnet18-w8',
}
seeds = 3
# the defaults of when the record was made: decay on all parameters, and wider decouplers for RSD
_as_recorded = {
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'optim_wrapper.paramwise_cfg': None,
}
teacher = dict(
    dataset='cifar100-20',
    options={'train_cfg.max_epochs': 30, 'train_cfg.val_interval': 5, **_as_recorded},
    flags=['--amp'],
)
student = dict(
    dataset='cifar100-20', options={'train_cfg.max_epochs': 5, **_as_recorded}, flags=['--amp']
)
_pairs = ('teacher_student', 'teacher_assistant', 'assistant_student')
known_rows = {
    'RSD': dict(connectors={'decoupler.expansion': 4}),
    'TAS, RSD for InfoNCE': dict(
        connectors={f'{pair}.expansion': 4 for pair in _pairs},
    ),
}
rows = [
    'student alone',
    'KD',
    'DKD',
    'DIST',
    'OFA',
    'TAS',
    'HCD',
    'RSD',
    'TAS, RSD for InfoNCE',
]
