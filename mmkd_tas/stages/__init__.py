from .recorder import SOURCES, StageOutputsRecorder
from .stage import Stage
from .tail import Knowledge, Tail
from .view import ModelView, built_for, describe, view_of

__all__ = [
    'SOURCES',
    'Knowledge',
    'ModelView',
    'Stage',
    'StageOutputsRecorder',
    'Tail',
    'built_for',
    'describe',
    'view_of',
]
