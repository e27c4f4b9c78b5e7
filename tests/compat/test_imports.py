"""Packages and configs can be imported."""

import pytest
import torch
from helpers import in_new_process
from mmrazor.registry import MODELS as RAZOR_MODELS


def test_mmrazor_imports_whole():
    printed = in_new_process("""
        import mmkd_tas
        import mmrazor.datasets, mmrazor.engine, mmrazor.implementations, mmrazor.models
        from mmrazor.models import DKDLoss, KLDivergence, SingleTeacherDistill
        print('imported')
    """)
    assert printed.endswith('imported')


def test_quantization_says_why_it_is_off():
    quantizer = dict(
        type='mmrazor.OpenVINOQuantizer',
        global_qconfig={},
        tracer=dict(type='mmrazor.CustomTracer'),
    )
    with pytest.raises(NotImplementedError, match='quantization.*PyTorch'):
        RAZOR_MODELS.build(quantizer)
    from mmrazor.structures.quantization import BackendConfigs

    with pytest.raises(NotImplementedError, match='BackendConfigs'):
        BackendConfigs['openvino']


def test_mmrazor_finds_mmcls_in_mmpretrain():
    import mmcls.structures
    import mmpretrain.models
    import mmpretrain.structures
    from mmcls.datasets.transforms.formatting import PackClsInputs
    from mmrazor.models.architectures.classifiers.image import ImageClassifier
    from mmrazor.models.losses.kd_soft_ce_loss import soft_cross_entropy

    assert mmcls.structures is mmpretrain.structures
    assert mmpretrain.structures.__spec__.name == 'mmpretrain.structures'
    assert mmcls.structures.ClsDataSample is mmpretrain.structures.DataSample
    assert PackClsInputs.__name__ == 'PackInputs'
    assert issubclass(ImageClassifier, mmpretrain.models.ImageClassifier)
    loss = RAZOR_MODELS.build(dict(type='mmrazor.KDSoftCELoss', tau=1.0))
    logits = torch.randn(4, 3)
    expected = soft_cross_entropy(logits, logits.softmax(1), reduction='mean')
    torch.testing.assert_close(loss(logits, logits), expected)


@pytest.mark.parametrize('without_setuptools', [False, True])
def test_configs_of_other_packages(without_setuptools):
    hide = """
        import importlib.abc, sys
        class Hidden(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition('.')[0] in ('pkg_resources', 'setuptools'):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Hidden())
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda n, *a: None if n == 'pkg_resources' else find(n, *a)
    """
    code = """
        import mmkd_tas
        from mmengine.config import Config
        from mmkd_tas.registry import MODELS
        import tempfile, os
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, 'c.py')
            open(file, 'w').write("_base_ = ['mmpretrain::resnet/resnet18_8xb16_cifar10.py']")
            print(Config.fromfile(file).model.backbone.depth)
        model = MODELS.build(dict(cfg_path='mmpretrain::resnet/resnet18_8xb32_in1k.py'))
        print(model.head.num_classes)
    """
    printed = in_new_process((hide if without_setuptools else '') + code)
    assert printed.split('\n')[-2:] == ['18', '1000']
