from .cifar100 import CIFAR100Split
from .digits import Digits

__all__ = ['CIFAR100Split', 'Digits']
