"""What happens when a loss is no number."""

import math
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from ..errors import SetupError
from ..models.utils import unwrapped
from ..registry import HOOKS

_MOST_IN_A_ROW = 10
_INTERVAL = 10  # where nothing is logged
_ADVICE = 'lower optim_wrapper.optimizer.lr, or set optim_wrapper.clip_grad'


def _broken_anywhere(loss: Tensor) -> bool:
    """Return, in every process alike, whether one of them has a loss that is not finite."""
    broken = (~loss.detach().isfinite()).float()
    all_reduce(broken, 'max')
    return bool(broken)


def _losses(outputs: dict) -> dict[str, Tensor]:
    return {key: torch.as_tensor(v).detach() for key, v in outputs.items() if 'loss' in key}


def _broken_terms(losses: dict[str, Tensor]) -> dict[str, float]:
    values = {key: float(value) for key, value in losses.items()}
    return {key: value for key, value in values.items() if not math.isfinite(value)}


def _sentence(terms: dict[str, float], where: str) -> str:
    """Say which terms were no numbers; their sum is told where none of them is to blame."""
    parts = {key: value for key, value in terms.items() if key != 'loss'} or terms
    return ' and '.join(f'{key} is {value}' for key, value in parts.items()) + f' {where}'


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop the training, or leave the step out, when a loss is NaN or infinite.

    Only losses count: gradients may overflow in fp16, and the loss scaler then leaves
    the step out by itself. Several processes stop, or leave the step out, together.

    ``'stop'`` looks at the losses of all steps when they are logged and when an epoch ends,
    so that no step waits for a GPU or another process; ``'skip'`` looks at each, between
    forward and backward.

    Args:
        action: ``'stop'``: end the run with the names of the terms of the first such step,
            before anything is saved. ``'skip'``: leave weights, optimizer, loss scaler and
            buffers (running means) as they were before the step, and go on to the next; with
            accumulated gradients, an update that ends in such a step is left out as a whole.
            Each is logged, and their number is in the checkpoints (``skipped_steps``); after
            ten in a row the run stops.

    Raises:
        SetupError: If `action` is neither; in training, where the run is to stop, and where
            weights that are not finite were to be saved.
    """

    # before the losses are recorded and the averaged weights follow
    priority = 'HIGHEST'

    def __init__(self, action: str = 'stop') -> None:
        if action not in ('stop', 'skip'):
            raise SetupError(f"FiniteLossHook: action={action!r} is neither 'stop' nor 'skip'")
        self.action = action
        self.broken = False
        self.in_a_row = 0
        self.unread: list[tuple[int, str, dict]] = []

    def before_train(self, runner: Runner) -> None:
        """Let no such loss reach the weights, if steps are to be left out."""
        if self.action == 'stop':
            logs = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self.interval = min(logs, default=_INTERVAL)
            return
        wrapper = runner.optim_wrapper
        update = wrapper.update_params

        def update_if_finite(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            self.broken = _broken_anywhere(loss)
            if not self.broken:
                update(loss, *args, **kwargs)
                return
            wrapper._inner_count += 1
            # What was accumulated before is not exchanged between the processes yet.
            if wrapper.should_update():
                wrapper.zero_grad()

        wrapper.update_params = update_if_finite

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the buffers, which the forward pass changes."""
        if self.action == 'skip':
            self.buffers = [buffer.clone() for buffer in runner.model.buffers()]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Stop, or undo what the step has changed."""
        where = f'in epoch {runner.epoch + 1}, step {batch_idx + 1}'
        if self.action == 'stop':
            if outputs and 'loss' in outputs:
                self.unread.append((runner.iter, where, _losses(outputs)))
            if self.every_n_inner_iters(batch_idx, self.interval):
                self._look(all_gather_object)
            return
        if not self.broken:
            self.in_a_row = 0
            return
        own, terms = _broken_terms(_losses(outputs)), {}
        for found in all_gather_object(own):
            terms.update(found)
        what = _sentence(terms, where)
        self.in_a_row += 1
        if self.in_a_row == _MOST_IN_A_ROW:
            raise SetupError(f'{what}, and so it was in the {_MOST_IN_A_ROW - 1} before: {_ADVICE}')
        with torch.no_grad():
            for buffer, before in zip(runner.model.buffers(), self.buffers, strict=True):
                buffer.copy_(before)
        for key in own:
            del outputs[key]  # from the means in the log
        count = runner.message_hub.runtime_info.get('skipped_steps', 0) + 1
        runner.message_hub.update_info('skipped_steps', count)
        runner.logger.warning(f'{what}: step left out, {count} so far')

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the last losses of the epoch, before it is validated and saved."""
        if self.action == 'stop':
            self._look(all_gather_object)

    def _look(self, exchange: Callable) -> None:
        """Stop if a loss of the steps since the last look is not finite, in any process."""
        unread, self.unread = self.unread, []
        sums = [losses['loss'].reshape(()).float() for *_, losses in unread]
        finite = torch.stack(sums).isfinite().tolist() if sums else []
        broken = next(
            (step for step, is_finite in zip(unread, finite, strict=True) if not is_finite), None
        )
        own = broken and (*broken[:2], _broken_terms(broken[2]))
        found = [process for process in exchange(own) if process is not None]
        if not found:
            return
        first, where, _ = min(found, key=lambda process: process[0])
        terms = {key: v for step, _, part in found if step == first for key, v in part.items()}
        raise SetupError(
            f'{_sentence(terms, where)}: {_ADVICE}, or skip such steps with '
            "default_hooks.finite_loss.action='skip'; --resume continues from the last checkpoint"
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save no weights that are not finite: of the last step, no loss has told."""
        self._look(lambda own: [own])  # only one process saves
        weights = unwrapped(runner.model).named_parameters()
        broken = [name for name, weight in weights if not weight.isfinite().all()]
        if broken:
            raise SetupError(
                f'{len(broken)} of the weights are NaN or infinite after step {runner.iter}, '
                f'{broken[0]} among them, and are not saved: {_ADVICE}'
            )
