from .base import StageConnector
from .exit_branch import ExitBranch
from .hybrid_assistant import HybridAssistant
from .pair_projector import PairProjector

__all__ = ['ExitBranch', 'HybridAssistant', 'PairProjector', 'StageConnector']
