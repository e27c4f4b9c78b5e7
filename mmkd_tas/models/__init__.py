from .algorithms import CrossArchDistill
from .connectors import StageConnector
from .distillers import StageDistiller

__all__ = ['CrossArchDistill', 'StageConnector', 'StageDistiller']
