"""What is exported opens elsewhere, with the same logits on the same images."""

import json
import re
import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from helpers import REPO, TINY, ends_with
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmpretrain.apis import ImageClassificationInferencer, get_model
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig

from mmkd_tas.errors import SetupError
from mmkd_tas.export import FORMATS, Student
from mmkd_tas.registry import MODELS

EXPORT = REPO / 'tools/export_student.py'
CLASSES = [f'digit {i}' for i in range(10)]
MEAN, STD = 77.7 / 255, 94.8 / 255


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('export')


@pytest.fixture(scope='module')
def hugging_face(folder):
    tiny = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
    ViTConfig(**tiny, image_size=16, patch_size=4).save_pretrained(folder / 'vit')
    return f'hf:{folder / "vit"}'


@pytest.fixture(scope='module')
def students(folder, hugging_face):
    """Work dirs by the library that the student is from."""
    named = dict(_delete_=True, type='mmkd_tas.Classifier', num_classes=10)
    architectures = {
        'mmpretrain': {},
        'swin': dict(
            _delete_=True,
            type='ImageClassifier',
            backbone=dict(
                type='SwinTransformer',
                arch=dict(embed_dims=8, depths=[2, 1, 1, 1], num_heads=[1] * 4),
                img_size=16,
                patch_size=2,
                window_size=2,
                pad_small_map=True,
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', in_channels=64, num_classes=10),
        ),
        'timm': {**named, 'model': 'timm:test_vit', 'img_size': 16, 'pos_drop_rate': 0.1},
        'hf': {**named, 'model': hugging_face},
        'own': {**named, 'model': {'type': 'own_model.BranchesOnCount'}},
    }
    runs = {}
    for name, architecture in architectures.items():
        runs[name] = folder / name
        runs[name].mkdir()
        config = Config.fromfile(TINY)
        config.merge_from_dict({'model': {'architecture': architecture}})
        (runs[name] / 'run.py').write_text(config.pretty_text)
        init_default_scope('mmpretrain')
        torch.manual_seed(0)
        student = MODELS.build(config.model.architecture)
        for parameter in student.parameters():
            nn.init.normal_(parameter, std=0.1)
        meta = dict(dataset_meta=dict(classes=CLASSES))
        torch.save(dict(state_dict=student.state_dict(), meta=meta), runs[name] / 'epoch_1.pth')
    return runs


@pytest.fixture(scope='module')
def pixels():
    """Images of digits, 0 to 255, (N, 3, 16, 16)."""
    dataset = DATASETS.build(Config.fromfile(TINY).test_dataloader.dataset)
    return torch.stack([dataset[i]['inputs'] for i in range(20)]).float()


def export(run, kind):
    student = Student.of_run(run)
    out = run / FORMATS[kind][0]
    if kind != 'folder' or not out.exists():
        FORMATS[kind][1](student, out)
    return student, out


def close(found, student, pixels):
    with torch.no_grad():
        expected = student.model(student.model.data_preprocessor(dict(inputs=pixels))['inputs'])
        found = torch.as_tensor(found)
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, atol=1e-4)


def test_timm_loads_a_folder(students, pixels):
    student, out = export(students['timm'], 'folder')
    model = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
    record = timm.data.resolve_model_data_config(model)
    assert record['input_size'] == (3, 16, 16)
    assert record['crop_pct'] == 1
    mean, std = (torch.tensor(record[key]).view(3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        close(model((pixels / 255 - mean) / std), student, pixels)
    assert json.loads((out / 'config.json').read_text())['label_names'] == CLASSES


def test_hugging_face_loads_a_folder(students, pixels):
    student, out = export(students['hf'], 'folder')
    model = AutoModelForImageClassification.from_pretrained(out).eval()
    images = [image.permute(1, 2, 0).byte().numpy() for image in pixels]
    inputs = AutoImageProcessor.from_pretrained(out)(images, return_tensors='pt')
    with torch.no_grad():
        close(model(**inputs).logits, student, pixels)
    assert [model.config.id2label[i] for i in range(10)] == CLASSES


def test_mmpretrain_loads_a_folder(students, pixels):
    student, out = export(students['mmpretrain'], 'folder')
    text = (out / 'config.py').read_text()
    assert 'mmkd_tas' not in text
    model = get_model(str(out / 'config.py'), pretrained=True)
    close(model(model.data_preprocessor(dict(inputs=pixels))['inputs']).detach(), student, pixels)
    infer = ImageClassificationInferencer(str(out / 'config.py'))
    image = pixels[3].permute(1, 2, 0).byte().numpy()
    (result,) = infer(image)
    assert result['pred_class'] == CLASSES[result['pred_label']]
    # files of any size, read as BGR
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (16, 16, 3), np.uint8)
    cv2.imwrite(str(out / 'colours.png'), colours[..., ::-1].repeat(2, 0).repeat(2, 1))
    (result,) = infer(str(out / 'colours.png'))
    with torch.no_grad():
        inputs = torch.from_numpy(colours).permute(2, 0, 1)[None].float()
        logits = student.model(student.model.data_preprocessor(dict(inputs=inputs))['inputs'])
    assert np.allclose(result['pred_scores'], logits.softmax(1)[0], atol=1e-4)


@pytest.mark.parametrize('name', ['mmpretrain', 'swin', 'timm', 'hf'])
def test_onnxruntime_runs_batches_of_any_size(students, pixels, name):
    student, out = export(students[name], 'onnx')
    session = onnxruntime.InferenceSession(out, providers=['CPUExecutionProvider'])
    found = {prop.key: json.loads(prop.value) for prop in onnx.load(out).metadata_props}
    assert found['classes'] == CLASSES
    assert found['input_size'] == [16, 16]
    assert np.allclose([found['mean'], found['std']], [[MEAN] * 3, [STD] * 3])
    for count in (1, 20):
        images = (pixels[:count] / 255 - found['mean'][0]) / found['std'][0]
        close(session.run(None, {'images': images.numpy()})[0], student, pixels[:count])


@pytest.mark.skipif(not hasattr(torch.export, 'Dim'), reason='of PyTorch 2.2')
def test_torch_loads_a_program(students, pixels):
    student, out = export(students['mmpretrain'], 'pt2')
    files = {'meta.json': ''}
    program = torch.export.load(out, extra_files=files).module()
    found = json.loads(files['meta.json'])
    assert found['classes'] == CLASSES
    for count in (1, 20):
        images = (pixels[:count] / 255 - found['mean'][0]) / found['std'][0]
        close(program(images).detach(), student, pixels[:count])


def test_a_graph_that_is_not_the_model_is_not_written(students, tmp_path):
    for kind in ('onnx', 'pt2'):
        out = tmp_path / 'student'
        message = f'--to {kind}: .*(other logits than PyTorch|cannot export this model)'
        with pytest.raises(SetupError, match=message):
            FORMATS[kind][1](Student.of_run(students['own']), out)
        assert not [*tmp_path.iterdir()]


def test_mistakes(students, tmp_path):
    run, nowhere = students['own'], tmp_path / 'new'
    with pytest.raises(SetupError, match='Classifier is not of mmpretrain, timm or Hugging Face'):
        FORMATS['folder'][1](Student.of_run(run), nowhere)
    assert not [*tmp_path.iterdir()]
    assert 'is there already; give a new or an empty folder' in ends_with(
        EXPORT, students['timm'], students['timm'], '--to', 'folder'
    )
    assert 'give WORK_DIR, WORK_DIR OUT, or CONFIG CHECKPOINT OUT' in ends_with(EXPORT, 'none')
    assert "there is no config of a run in '" in ends_with(EXPORT, tmp_path)
    (tmp_path / 'run.py').write_text((run / 'run.py').read_text())
    assert "there is no whole checkpoint in '" in ends_with(EXPORT, tmp_path)


def test_a_missing_package_is_named(students, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(SetupError, match=re.escape("pip install 'mmkd_tas[onnx]'")):
        FORMATS['onnx'][1](Student.of_run(students['timm']), tmp_path / 'student.onnx')


@pytest.mark.parametrize('to_rgb', [True, False])
def test_files_are_bgr_unless_they_are_converted(students, tmp_path, to_rgb):
    config = Config.fromfile(students['timm'] / 'run.py')
    config.data_preprocessor.to_rgb = to_rgb
    config.test_dataloader.dataset.pipeline.insert(0, dict(type='LoadImageFromFile'))
    config.dump(tmp_path / 'run.py')
    student = Student.of_run(tmp_path / 'run.py', students['timm'] / 'epoch_1.pth')
    assert student.described()['channels'] == ('RGB' if to_rgb else 'BGR')
    if not to_rgb:
        with pytest.raises(SetupError, match='trained on BGR images'):
            FORMATS['folder'][1](student, tmp_path / 'student')
