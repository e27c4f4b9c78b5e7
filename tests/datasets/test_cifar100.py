import io
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from mmengine.registry import DATASETS

from mmkd_tas.errors import SetupError

COUNTS = {'train': 50000, 'test': 30}


class Python2(pickle._Pickler):
    """Pickles as Python 2 did when the official files were made: every string is bytes."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        text = text.encode('latin1') if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack('<i', len(text)) + text)

    dispatch[bytes] = dispatch[str] = save_string


def write(root, name, entry):
    """Write a file of the official archive."""
    folder = root / 'cifar-100-python'
    folder.mkdir(exist_ok=True)
    stream = io.BytesIO()
    Python2(stream, protocol=2).dump(entry)
    (folder / name).write_bytes(stream.getvalue().replace(b'numpy._core', b'numpy.core'))


def entry(images, labels, **more):
    return {'data': images, 'fine_labels': labels, 'filenames': ['x.png'], **more}


def numbered(count):
    """Images that say, in their first four bytes, which they are; their labels are 7 i mod 100."""
    images = np.zeros((count, 3072), np.uint8)
    images[:, :4] = np.arange(count, dtype='<u4').view(np.uint8).reshape(-1, 4)
    return images, [7 * i % 100 for i in range(count)]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """As many training images as the real data set has."""
    root = tmp_path_factory.mktemp('cifar')
    for name, count in COUNTS.items():
        write(root, name, entry(*numbered(count)))
    return root


def dataset(root, **kwargs):
    # one copy of the images is enough
    kwargs = {'serialize_data': False, **kwargs}
    return DATASETS.build(dict(type='mmkd_tas.CIFAR100Split', data_root=str(root), **kwargs))


def number(sample):
    return int.from_bytes(sample['img'][0, :4, 0].tobytes(), 'little')


def numbers(data):
    return [number(sample) for sample in data.data_list]


def test_splits(root):
    train, val = numbers(dataset(root)), numbers(dataset(root, split='val'))
    assert sorted(train) == list(range(50000))
    assert train != sorted(train)
    assert val == train[-5000:]
    some = numbers(dataset(root, num_train=45000))
    assert some == train[:45000]
    assert not set(some) & set(val)
    assert sorted(numbers(dataset(root, split='test'))) == list(range(30))


def test_the_split_does_not_depend_on_the_order_in_the_file(tmp_path):
    images, labels = numbered(400)
    write(tmp_path, 'train', entry(images, labels))
    before = numbers(dataset(tmp_path))
    order = np.random.default_rng(0).permutation(400)
    write(tmp_path, 'train', entry(images[order], [labels[i] for i in order]))
    data = dataset(tmp_path)
    assert numbers(data) == before
    assert all(s['gt_label'] == 7 * number(s) % 100 for s in map(data.get_data_info, range(400)))


def test_pixels_and_labels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    write(tmp_path, 'test', entry(images, [5, 99, 0]))
    data = dataset(tmp_path, split='test', pipeline=[dict(type='PackInputs')])
    assert data.metainfo['classes'][99] == 'worm'
    found = {int(s['data_samples'].gt_label): s['inputs'] for s in map(data.__getitem__, range(3))}
    for label, image in zip([5, 99, 0], images, strict=True):
        # rows of red, then green, then blue
        np.testing.assert_array_equal(found[label].numpy(), image.reshape(3, 32, 32))
    sample = data.get_data_info(0)
    assert (sample['img'].shape, sample['img'].dtype) == ((32, 32, 3), np.uint8)
    assert 'test' in repr(data)


@pytest.mark.parametrize(
    ('arguments', 'saying'),
    [
        (dict(split='valid'), "split='valid' is not one of 'train', 'val', 'test'"),
        (dict(num_train=0), 'num_train=0 is not between 1 and 50000'),
        (dict(num_train=50001), 'num_train=50001 is not'),
        (dict(num_train=0.5), 'num_train=0.5 is not'),
    ],
)
def test_arguments(tmp_path, arguments, saying):
    with pytest.raises(SetupError, match=saying):
        dataset(tmp_path, **arguments)


def test_missing_files(tmp_path):
    with pytest.raises(SetupError, match='cifar-100-python/test. does not exist: unpack the'):
        dataset(tmp_path, split='test')


GOOD = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ('content', 'saying'),
    [
        ({'data': GOOD, 'labels': [0, 1]}, 'not a file of CIFAR-100 .*fine_labels'),  # CIFAR-10
        ({'data': GOOD, 'fine_labels': [0]}, r'its images are \(2, 3072\)'),
        ({'data': GOOD[:, :5], 'fine_labels': [0, 1]}, r'its images are \(2, 5\)'),
        ({'data': GOOD.astype(float), 'fine_labels': [0, 1]}, 'its images are'),
        ([GOOD], 'not a file of CIFAR-100'),
        ({'data': GOOD, 'fine_labels': 3}, 'not a file of CIFAR-100'),
    ],
)
def test_files_of_something_else(tmp_path, content, saying):
    write(tmp_path, 'train', content)
    with pytest.raises(SetupError, match=saying):
        dataset(tmp_path)


@pytest.mark.parametrize('size', [0, 1, 100, -1])
def test_broken_files(tmp_path, size):
    write(tmp_path, 'train', entry(*numbered(5)))
    file = tmp_path / 'cifar-100-python/train'
    for content in (file.read_bytes()[:size], b'\x89PNG not a pickle', b'\x80\x02K'):
        file.write_bytes(content)
        with pytest.raises(SetupError, match="train' is not a file of CIFAR-100"):
            dataset(tmp_path)


class Evil:
    """Call something when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize('kind', ['mmkd_tas.CIFAR100Split', 'CIFAR100'])
@pytest.mark.parametrize(
    'evil',
    [
        lambda mark: Evil(os.mkdir, mark),
        lambda mark: Evil(eval, f'__import__("os").mkdir({mark!r})'),
        lambda mark: Evil(getattr, OrderedDict, 'fromkeys'),
        lambda mark: np.array([Evil(os.mkdir, mark)], dtype=object),
    ],
)
def test_a_file_cannot_run_code(tmp_path, kind, evil):
    """Nor one for mmpretrain's CIFAR100, which reads nothing but the official files."""
    mark = tmp_path / 'mark'
    write(tmp_path, 'train', entry(*numbered(2), more=evil(str(mark))))
    cfg = dict(type=kind, data_root=str(tmp_path))
    if kind == 'CIFAR100':
        with pytest.raises(RuntimeError, match='Cannot find CIFAR100 dataset'):
            DATASETS.build(dict(**cfg, download=False))
    else:
        with pytest.raises(SetupError, match='not a file of CIFAR-100 .it wants to call'):
            DATASETS.build(cfg)
    assert not mark.exists()
