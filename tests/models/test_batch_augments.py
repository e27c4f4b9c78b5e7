import torch
from mmengine.registry import MODELS


def mixed(**keys):
    augment = dict(type='mmkd_tas.MixThenErase', augments=dict(type='Mixup', alpha=1.0), **keys)
    batch_augments = dict(augments=augment)
    preprocessor = MODELS.build(
        dict(type='mmpretrain.ClsDataPreprocessor', num_classes=2, batch_augments=batch_augments)
    )
    images = torch.full((64, 3, 20, 20), 10.0)
    images[32:] = 20
    score = torch.eye(2).repeat_interleave(32, 0)
    before = images.clone()
    result = preprocessor.batch_augments(images, score)
    assert torch.equal(images, before)
    return result


def test_rectangles_are_erased_after_mixing():
    images, score = mixed(erase_prob=0.5)
    shade = 10 * score[:, :1] + 20 * score[:, 1:]
    noise = (images - shade[:, :, None, None]).abs() > 1e-4
    assert torch.equal(noise.all(1), noise.any(1))  # all channels of a pixel
    share = noise.flatten(1).float().mean(1)
    erased = share > 0
    assert 16 < erased.sum() < 48
    assert ((share[erased] > 0.01) & (share[erased] < 0.4)).all()
    values = images[noise]
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.1
    rows, columns = noise[erased][0, 0].any(1), noise[erased][0, 0].any(0)
    assert torch.equal(noise[erased][0, 0], rows[:, None] & columns)


def test_nothing_is_erased_without_probability():
    images, score = mixed(erase_prob=0.0)
    shade = 10 * score[:, :1] + 20 * score[:, 1:]
    torch.testing.assert_close(images, shade[:, :, None, None].expand_as(images))
