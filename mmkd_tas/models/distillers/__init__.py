from .stage_distiller import StageDistiller

__all__ = ['StageDistiller']
