"""Weights of losses that change during training."""

import math
from dataclasses import dataclass

from mmengine.logging import MessageHub

from ...errors import SetupError


@dataclass(frozen=True)
class LossSchedule:
    """A factor of a loss over the training: 0, rising to 1, falling to 0 again.

    Args:
        begin: From here on the factor is more than 0.
        warmup: It rises linearly for so long.
        end: From here on it is 0. By default there is no such moment, and where it decays,
            that is the end of the training.
        decay: ``'linear'`` or ``'cosine'``: it falls from the end of the warm-up to `end`.
            By default it stays 1 up to `end`.
        by_epoch: Whether the three are epochs (also fractions of them), or iterations.

    Raises:
        SetupError: If the parts do not follow one another.
    """

    begin: float = 0
    warmup: float = 0
    end: float = math.inf
    decay: str | None = None
    by_epoch: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.begin + self.warmup <= self.end:
            raise SetupError(
                f'loss_schedules: begin={self.begin}, warmup={self.warmup} and end={self.end} do '
                'not follow one another; begin + warmup has to be at most end'
            )
        if self.decay not in (None, 'linear', 'cosine'):
            raise SetupError(
                f"loss_schedules: decay={self.decay!r} is neither 'linear' nor 'cosine'"
            )

    @property
    def counts_epochs(self) -> bool:
        """Whether it has numbers of epochs, and not only the training as a whole."""
        return self.by_epoch and (self.begin, self.warmup, self.end) != (0, 0, math.inf)

    def factor(self) -> float:
        """Return the factor at the present moment of the running training."""
        info = MessageHub.get_current_instance().runtime_info
        now, last = info.get('iter', 0), info.get('max_iters', 1)
        if self.by_epoch and (epochs := info.get('max_epochs')):
            now, last = now * (epochs / last), epochs
        return self.at(now, last)

    def at(self, now: float, last: float = math.inf) -> float:
        """Return the factor at a moment of a training that ends at `last`, in its unit."""
        if now < self.begin or now >= self.end:
            return 0.0
        full = self.begin + self.warmup
        if now < full:
            return (now - self.begin) / self.warmup
        if self.decay is None:
            return 1.0
        passed = (now - full) / (min(self.end, last) - full)
        return 1 - passed if self.decay == 'linear' else (1 + math.cos(math.pi * passed)) / 2
