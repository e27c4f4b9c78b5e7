from .base import StageConnector

__all__ = ['StageConnector']
