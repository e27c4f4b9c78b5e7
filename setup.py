from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version: dict[str, str] = {}
exec((here / 'mmkd_tas/version.py').read_text(), version)

# the site, mkdocs.yml
docs = [
    f'{package}; python_version >= "3.11"'
    for package in ('latex2mathml>=3.77', 'mkdocs-material>=9.6', 'mkdocstrings[python]>=1.0')
]
lite = ['mmcv-lite>=2.0.0,<=2.1.0']

setup(
    name='mmkd_tas',
    version=version['__version__'],
    description='Knowledge distillation between image classifiers of any architecture, '
    'for MMRazor and MMPretrain',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='mmkd_tas contributors',
    license='Apache-2.0',
    keywords='knowledge distillation, image classification, computer vision, PyTorch, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['mmkd_tas', 'mmkd_tas.*']),
    # .mim and configs are links to the folders at the top, of which wheels and sdists hold
    # copies. mmengine reads .mim for 'mmkd_tas::...' and configs for read_base().
    package_data={
        'mmkd_tas': [
            'py.typed',
            '.mim/model-index.yml',
            '.mim/tools/*.*',
            '.mim/configs/**/*.py',
            '.mim/configs/**/*.md',
            '.mim/configs/**/*.yml',
            'configs/**/*.py',
        ]
    },
    entry_points={'console_scripts': ['mmkd-tas = mmkd_tas.commands:main']},
    python_requires='>=3.10',
    # Without mmcv: whoever has the full one keeps it; `lite` and `full` bring one.
    install_requires=[
        'torch>=2.1',
        'torchvision>=0.16',
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
        'lite': lite,
        'full': ['mmcv>=2.0.0,<=2.1.0'],
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
            'setuptools>=70.1',
            'onnx>=1.15',
            'onnxruntime>=1.16',
            'transformers>=4.40',
            *lite,
            *docs,
        ],
    },
)
