# scikit-learn's handwritten digits: 1,000 training and 797 test images, no download
input_size = 16
data_preprocessor = dict(
    num_classes=10,
    # of the 0..255 pixels of the training images
    mean=[77.7, 77.7, 77.7],
    std=[94.8, 94.8, 94.8],
    to_rgb=False,
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=input_size, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=50,
    num_workers=0,
    dataset=dict(
        type='mmkd_tas.Digits', split='train', image_size=input_size, pipeline=train_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=200,
    num_workers=0,
    dataset=dict(
        type='mmkd_tas.Digits', split='test', image_size=input_size, pipeline=test_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
