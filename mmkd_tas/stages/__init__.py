from .recorder import SOURCES, StageOutputsRecorder
from .stage import Stage
from .tail import Knowledge, Tail
from .view import ModelView, describe, view_of

__all__ = [
    'SOURCES',
    'Knowledge',
    'ModelView',
    'Stage',
    'StageOutputsRecorder',
    'Tail',
    'describe',
    'view_of',
]
