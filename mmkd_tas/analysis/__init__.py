"""What a distillation did to a student: features, predictions, pictures and a report of them."""

from .features import (
    FeatureReader,
    MinibatchCKA,
    coarse,
    percent_by_class,
    principal_map,
    unbiased_hsic,
)
from .measured import Measured, measure
from .report import write_report

__all__ = [
    'FeatureReader',
    'Measured',
    'MinibatchCKA',
    'coarse',
    'measure',
    'percent_by_class',
    'principal_map',
    'unbiased_hsic',
    'write_report',
]
