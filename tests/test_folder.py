"""From a folder of images to a student in one line."""

import re

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import DATASETS
from PIL import Image

from mmkd_tas.commands import main
from mmkd_tas.configs import compose, load_config, set_epochs
from mmkd_tas.errors import SetupError
from mmkd_tas.folder import ImageFolder

LINE = ['--teacher', 'timm:test_vit', '--student', 'timm:test_resnet', '--method', 'tas']


def draw(root, **counts):
    """Write images of a class, ``{'train/red': 5}``."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f'image {i}.png')
    return root


def test_a_split_folder(tmp_path):
    draw(tmp_path, **{'train/a': 3, 'train/b': 2, 'valid/a': 1, 'valid/b': 1})
    data = ImageFolder.read(tmp_path)
    assert (data.classes, data.count('train'), data.count('val')) == (['a', 'b'], 5, 2)
    options = data.options(tmp_path)
    assert options['train_dataloader.dataset.data_prefix'] == 'train'
    assert options['test_dataloader.dataset.data_prefix'] == 'valid'
    assert options['data_preprocessor.num_classes'] == 2


def test_a_share_of_every_class_is_held_out(tmp_path):
    draw(tmp_path / 'data', a=10, b=2, c=30)
    data, again = (ImageFolder.read(tmp_path / 'data', 0.2) for _ in range(2))
    assert data == again
    assert {name: len(images) for name, images in data.parts['val'].items()} == dict(a=2, b=1, c=6)
    options = data.options(tmp_path)
    config = compose('folder', 'timm:test_vit,timm:test_resnet', 'student', options)
    labels = {}
    for part in ('train', 'val'):
        dataset = DATASETS.build(config[f'{part}_dataloader'].dataset)
        for sample in map(dataset.get_data_info, range(len(dataset))):
            labels[sample['img_path']] = sample['gt_label']
            assert f'/{"abc"[sample["gt_label"]]}/' in sample['img_path']
    assert len(labels) == 42  # none of them in both parts


@pytest.mark.parametrize(
    ('images', 'hold_out', 'said'),
    [
        ({}, 0.2, 'holds neither images nor folders'),
        ({'.': 3}, 0.2, 'holds 3 images and no folders; put the images of each class'),
        ({'a': 3, 'b': 3}, None, 'no images to validate with; put some into'),
        ({'a': 3, 'b': 1}, 0.2, "class 'b' has a single image"),
        ({'a': 3, 'b': 0}, 0.2, "class 'b' has no images"),
        ({'a': 3}, 0.2, "class 'a' alone; 2 are needed"),
        ({'a': 3, 'b': 3}, 20, '20 is not a share between 0 and 1'),
        ({'train/a': 3, 'train/b': 3, 'val/a': 1, 'val/c': 1}, None, "class 'c', which"),
        ({'train/a': 3, 'train/b': 3, 'val/a': 1}, None, "train' has class 'b', which"),
        ({'train/a': 3, 'train/b': 3, 'val/a': 1, 'val/b': 1}, 0.2, 'leave --hold-out out'),
    ],
)
def test_folders_that_cannot_work(tmp_path, images, hold_out, said):
    draw(tmp_path, **images)
    with pytest.raises(SetupError, match=said):
        ImageFolder.read(tmp_path, hold_out)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return draw(tmp_path / 'data', a=6, b=6, c=6)


def line(monkeypatch, *arguments):
    """Run ``mmkd-tas train``; return what ends it."""
    with monkeypatch.context() as patch:
        patch.setattr('sys.argv', ['mmkd-tas', 'train', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return str(end.value)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([*LINE], '--teacher-ckpt.*--teacher-epochs 20 to fine-tune it'),
        ([*LINE[:4]], 'give --teacher, --student and --method'),
        ([*LINE, '--dataset', 'digits'], '--data: leave out the config file and --dataset'),
        ([*LINE[:2], '--student', 'timm:resnet19', '--method', 'kd'], 'torchvision:resnet18'),
        ([*LINE, '--teacher-epochs', 1, '--work-dir', 'data/a/image 0.png/x'], 'Not a directory'),
    ],
)
def test_lines_that_cannot_work(data, monkeypatch, arguments, said):
    found = line(monkeypatch, '--data', data, '--hold-out', 0.3, *arguments)
    assert found.startswith('error: ')
    assert re.search(said, found), found


def test_options_of_a_line_need_it(monkeypatch):
    said = line(monkeypatch, '--dataset', 'digits', *LINE, '--epochs', 3)
    assert said == 'error: --epochs: it goes with --data'
    said = line(monkeypatch, '--dataset', 'folder', *LINE)
    assert 'write --data FOLDER' in said


def test_the_size_of_the_images_reaches_everything():
    options = {'data_preprocessor.num_classes': 3}
    pair = 'timm:vit_tiny_patch16_224,timm:vit_tiny_patch16_224'
    config = compose('folder', pair, 'tas', options, 112)
    assert config.input_size == config.model.input_size == 112
    assert config.model.teacher.img_size == config.model.architecture.img_size == 112
    resize, crop = config.val_dataloader.dataset.pipeline[1:3]
    assert (resize.scale, crop.crop_size) == (128, 112)
    choices = config.train_dataloader.dataset.pipeline[1].transforms
    assert {crop.scale for (crop,) in choices} == {112}


@pytest.mark.parametrize('epochs', [1, 7, 200])
def test_a_schedule_of_another_length(epochs):
    options = {'data_preprocessor.num_classes': 3}
    config = compose('folder', 'timm:test_vit,timm:test_resnet', 'student', options)
    set_epochs(config, epochs)
    warm_up = round(5 * epochs / 100)
    assert [(s.type, s.get('begin', 0), s.get('end')) for s in config.param_scheduler] == [
        *([('LinearLR', 0, warm_up)] if warm_up else []),
        ('CosineAnnealingLR', warm_up, None),
    ]
    assert config.train_cfg.max_epochs == epochs


def test_a_line_from_images_to_a_table(data, tmp_path, monkeypatch, capsys):
    torch.save(timm.create_model('test_vit').state_dict(), tmp_path / 'pretrained.pth')
    arguments = [
        'mmkd-tas', 'train', '--data', str(data), '--hold-out', '0.34', *LINE, '--baseline',
        '--teacher-ckpt', 'pretrained.pth', '--teacher-epochs', '1', '--epochs', '2',
        '--batch-size', '5', '--input-size', '32', '--work-dir', 'work', '--cfg-options',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'model.random_teacher=True', 'model.architecture.drop_rate=0.1',
    ]  # fmt: skip
    monkeypatch.setattr('sys.argv', arguments)
    main()
    said = capsys.readouterr().out
    assert 'data: 3 classes, 12 images to train and 6 to validate with, held out' in said
    assert 'tas: recipe folder_cnn, SGD' in said
    for row in ('teacher', 'tas', 'student alone'):
        assert f'│ {row} ' in said
    assert 'mmkd-tas export work/distilled --to folder' in said
    teacher, distilled, alone = (
        load_config(next((tmp_path / 'work' / name).glob('*.py')))
        for name in ('teacher', 'distilled', 'alone')
    )
    assert teacher.data_preprocessor.mean == [127.5] * 3  # timm's record of that model
    assert distilled.data_preprocessor.mean != teacher.data_preprocessor.mean
    assert distilled.model.teacher_ckpt == 'work/teacher'
    assert {**distilled.model.architecture, 'num_classes': 3} == alone.model
    assert alone.model.drop_rate == 0.1
    assert alone.param_scheduler == distilled.param_scheduler
    assert distilled.train_dataloader.batch_size == 5
    main()  # once more: nothing is trained
    assert capsys.readouterr().out.count('nothing to do') == 3
    # what it has written is a config like any other
    file = next((tmp_path / 'work/distilled').glob('*.py'))
    monkeypatch.setattr('sys.argv', ['mmkd-tas', 'train', str(file), '--work-dir', 'edited'])
    main()
    assert (tmp_path / 'edited/epoch_2.pth').is_file()
