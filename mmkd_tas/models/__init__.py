from .algorithms import CrossArchDistill

__all__ = ['CrossArchDistill']
