# The block of the assistant's projector, on a validation split: training images that no student
# is trained on
_base_ = './digits.py'
teachers = 'digits'
seeds = 1
_blocks = ('swin', 'bottleneck', 'conv', 'none')
rows = [f'TAS, {block}' for block in _blocks]
known_rows = {
    f'TAS, {block}': dict(method='tas', connectors={'assistant.block': block}) for block in _blocks
}
student = dict(
    options={
        'val_dataloader.dataset.split': 'val',
        'val_dataloader.dataset.num_train': 200,
    }
)
