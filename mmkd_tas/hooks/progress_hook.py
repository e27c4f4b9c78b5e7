"""A progress bar on terminals."""

import atexit
import logging
import sys
from numbers import Real
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ..registry import HOOKS


class _State(ProgressColumn):
    """What a narrow terminal cuts short, so that the other columns stay whole."""

    def __init__(self) -> None:
        super().__init__(Column(ratio=1))

    def render(self, task: Task) -> Text:
        return Text(task.fields['state'], no_wrap=True, overflow='ellipsis')


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show the training as one line: epoch, losses, the student's accuracy, time left.

    Where the output is a terminal, the bar takes the place of mmengine's lines, of which only
    warnings are still shown; the log file keeps them all. Elsewhere nothing changes.
    """

    # after the hook that takes note of losses and metrics
    priority = 'LOW'

    def __init__(self) -> None:
        self.progress: Progress | None = None

    def before_train(self, runner: Runner) -> None:
        """Start the bar."""
        console = Console()
        if not is_main_process() or not console.is_interactive:
            return
        self.progress = Progress(
            TextColumn('{task.fields[epoch]}'),
            BarColumn(bar_width=20 if console.width >= 100 else 8),
            TextColumn('{task.percentage:.0f} %'),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            TextColumn('{task.fields[accuracy]}', markup=False),
            _State(),
            expand=True,
        )
        self.task = self.progress.add_task(
            '', total=runner.max_iters, epoch='', accuracy='', state=''
        )
        self._show(runner, '', completed=runner.iter)
        self.progress.start()
        atexit.register(self.progress.stop)  # gives the cursor back, whatever happens
        streams = [h for h in runner.logger.handlers if type(h) is logging.StreamHandler]
        self.streams = [(handler, handler.stream, handler.level) for handler in streams]
        for handler in streams:
            handler.setStream(sys.stdout)  # which now prints above the bar
            handler.setLevel(logging.WARNING)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Show the losses."""
        if self.progress is None:
            return
        losses = {
            key.removeprefix('distill.').replace('loss_', '').replace('.loss', ''): float(value)
            for key, value in (outputs or {}).items()
            if 'loss' in key
        }
        loss = losses.pop('loss', None)
        terms = ' '.join(f'{name} {value:.3g}' for name, value in losses.items())
        state = f'loss {loss:.3g}' if loss is not None else ''
        if len(losses) > 1:
            state += f' ({terms})'
        self._show(runner, state, completed=runner.iter + 1)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Show that it is validated."""
        if self.progress is not None:
            count = len(runner.val_dataloader)
            self._show(runner, f'validation {batch_idx + 1}/{count}')

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the accuracy; where it is not measured, the first metric that is a number."""
        numbers = {key: v for key, v in (metrics or {}).items() if isinstance(v, Real)}
        if self.progress is None or not numbers:
            return
        first = next(iter(numbers))
        name, unit = first.rpartition('/')[2], ''
        if 'accuracy/top1' in numbers:
            first, name, unit = 'accuracy/top1', 'student', ' %'
        self.progress.update(self.task, accuracy=f'{name} {numbers[first]:.2f}{unit}', state='')

    def after_train(self, runner: Runner) -> None:
        """Take the bar away, and let the log be shown again."""
        if self.progress is None:
            return
        self.progress.stop()
        atexit.unregister(self.progress.stop)
        self.progress = None
        for handler, stream, level in self.streams:
            handler.setStream(stream)
            handler.setLevel(level)

    def _show(self, runner: Runner, state: str, **numbers: int) -> None:
        epoch = ''
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            epoch = f'epoch {min(runner.epoch + 1, runner.max_epochs)}/{runner.max_epochs}'
        self.progress.update(self.task, epoch=epoch, state=state, **numbers)
