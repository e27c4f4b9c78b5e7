from .cross_arch_distill import CrossArchDistill

__all__ = ['CrossArchDistill']
