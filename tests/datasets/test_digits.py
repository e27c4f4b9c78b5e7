import numpy as np
import pytest
from mmengine.registry import DATASETS
from sklearn.datasets import load_digits

from mmkd_tas.errors import SetupError


def build(**kwargs):
    return DATASETS.build(dict(type='mmkd_tas.Digits', **kwargs))


def labels(dataset):
    return [dataset[i]['gt_label'] for i in range(len(dataset))]


def test_split_is_fixed_and_complete():
    train, test = build(), build(split='test')
    assert (len(train), len(test)) == (1000, 797)
    assert labels(train) + labels(test) == load_digits().target.tolist()
    assert train.metainfo['classes'] == tuple('0123456789')


@pytest.mark.parametrize('size', [8, 16, 32])
def test_images_are_the_digits(size):
    dataset = build(image_size=size)
    for i in (0, 123, 999):
        image = dataset[i]['img']
        assert image.shape == (size, size, 3)
        assert image.dtype == np.uint8
        original = load_digits().images[i] * 255 / 16
        block = size // 8
        small = image[..., 0].reshape(8, block, 8, block).mean((1, 3))
        assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.97
        if size == 8:
            assert np.abs(small - original).max() < 1


def test_num_train_takes_the_same_number_of_each_digit():
    few, all_ = build(num_train=50), build()
    assert np.bincount(labels(few)).tolist() == [5] * 10
    every = {all_[i]['img'].tobytes() for i in range(1000)}
    chosen = {few[i]['img'].tobytes() for i in range(50)}
    assert len(chosen) == 50
    assert chosen <= every
    assert len(build(split='test', num_train=50)) == 797
    assert len(build(num_train=980)) == 980
    left_out = build(split='val', num_train=50)
    others = [left_out[i]['img'].tobytes() for i in range(len(left_out))]
    assert len(others) == 950
    assert {*others} | chosen == every
    assert not {*others} & chosen


@pytest.mark.parametrize('bad', [dict(split='val'), dict(num_train=15), dict(num_train=990)])
def test_bad_arguments(bad):
    with pytest.raises(SetupError, match=next(iter(bad))):
        build(**bad)
