"""Registries of this package, children of mmengine's.

``type='mmkd_tas.X'`` resolves in any mmengine config without ``custom_imports``:
mmengine imports this module when it meets the scope, and the ``locations``
import the rest.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry
from mmpretrain.registry import BATCH_AUGMENTS as MMPRETRAIN_BATCH_AUGMENTS
from mmrazor.registry.registry import build_razor_model_from_cfg

BATCH_AUGMENTS = Registry(
    'batch augment', parent=MMPRETRAIN_BATCH_AUGMENTS, locations=['mmkd_tas.models']
)
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, locations=['mmkd_tas.datasets'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, locations=['mmkd_tas.hooks'])
# MMRazor's build function also accepts dict(cfg_path='mmpretrain::...').
MODELS = Registry(
    'model',
    build_func=build_razor_model_from_cfg,
    parent=MMENGINE_MODELS,
    locations=['mmkd_tas.models'],
)
TASK_UTILS = Registry(
    'task util', parent=MMENGINE_TASK_UTILS, locations=['mmkd_tas.stages', 'mmkd_tas.models']
)
