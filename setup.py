import os
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version: dict[str, str] = {}
exec((here / 'mmkd_tas/version.py').read_text(), version)

# mmcv-lite and mmcv provide the same module. Who has the full mmcv keeps it with
#   MMKD_TAS_WITH_MMCV=1 pip install -e .
mmcv = 'mmcv' if os.environ.get('MMKD_TAS_WITH_MMCV') == '1' else 'mmcv-lite'
# the site, mkdocs.yml
docs = [
    f'{package}; python_version >= "3.11"'
    for package in ('latex2mathml>=3.77', 'mkdocs-material>=9.6', 'mkdocstrings[python]>=1.0')
]

setup(
    name='mmkd_tas',
    version=version['__version__'],
    description='Knowledge distillation between image classifiers of any architecture, '
    'for MMRazor and MMPretrain',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmkd_tas', 'mmkd_tas.*']),
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.1',
        'torchvision>=0.16',
        f'{mmcv}>=2.0.0,<=2.1.0',
        'mmengine==0.10.7',
        'mmpretrain==1.2.0',
        'mmrazor==1.0.0',
        'timm>=1.0',
        'safetensors>=0.4',
        'numpy>=1.24',
        'matplotlib>=3.7',
        'opencv-python>=4.5',
        'rich>=13',
        'scikit-learn>=1.3',
        # needed by mmrazor 1.0.0, which does not declare them
        'joblib',
        'ordered-set',
        'pydacefit',
    ],
    extras_require={
        # for the examples
        'accelerate': ['accelerate>=0.30'],
        'lightning': ['lightning>=2.2'],
        'hf': ['transformers>=4.40'],
        'docs': docs,
        'onnx': ['onnx>=1.15', 'onnxruntime>=1.16'],
        'test': [
            'mypy>=1.10',
            'pytest>=8',
            'pytest-xdist>=3',
            'ruff>=0.6',
            'onnx>=1.15',
            'onnxruntime>=1.16',
            'transformers>=4.40',
            *docs,
        ],
    },
)
