# Choices of weights and options, on a validation split: images that no student is trained on, and
# none of the test images
_base_ = './cifar100_cpu.py'
pairs = {
    'CNN -> ViT': 'resnet18-w16_vit-w128',
    'ViT -> CNN': 'vit-w128_resnet18-w8',
}
pairs['_delete_'] = True
teachers = 'cifar100_cpu'
seeds = 1
student = dict(
    options={
        'train_dataloader.dataset.num_train': 45000,
        'val_dataloader.dataset.split': 'val',
    }
)
rows = [
    'student alone',
    'HCD',
    'HCD, target not detached',
    'HCD, mean over stages',
    'HCD, mean over stages, target not detached',
]
