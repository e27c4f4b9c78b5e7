"""What a finished or running training left in its work dir."""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from . import cli, configs
from .errors import SetupError
from .models.utils import count_parameters

# What a gain may be due to besides the teacher, and what in these changes no result.
_RECIPE = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks')
_RECIPE += ('auto_scale_lr',)
_HARMLESS = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')
_HARMLESS += ('val_interval', 'val_begin')
# Points of top-1 by which a teacher should at least be better than what it teaches.
_LEAST_LEAD = 5


def newest_config(folder: Path) -> Path | None:
    """Return the config that a run was last started with, from its work dir; None without."""
    return max(folder.glob('*.py'), key=lambda path: path.stat().st_mtime, default=None)


@dataclass
class Run:
    """The record of one training.

    Attributes:
        label: Its name in tables and plots.
        folder: Its work dir.
        train: ``{iteration: {'loss': ..., 'time': ...}}``.
        val: ``{epoch: {'accuracy/top1': ...}}``, percent.
        teacher: The teacher's metrics on the validation data, if there is one.
    """

    label: str
    folder: Path
    train: dict[int, dict] = field(default_factory=dict)
    val: dict[int, dict] = field(default_factory=dict)
    teacher: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path, label: str | None = None) -> 'Run':
        """Read a work dir; where a resumed run did a step again, the later record counts.

        Raises:
            SetupError: If there is no training log in the folder.
        """
        folder = Path(folder)
        run = cls(label or folder.name, folder)
        for file in sorted(folder.glob('*/vis_data/scalars.json')):
            for line in file.read_text().splitlines():
                run._add(json.loads(line))
        if not run.train:
            raise SetupError(f"there is no training log in '{folder}'")
        return run

    def _add(self, record: dict) -> None:
        step = record.pop('step')
        if 'loss' in record:
            self.train[step] = record
        elif any(key.startswith('teacher/') for key in record):
            self.teacher = {key.removeprefix('teacher/'): v for key, v in record.items()}
        else:
            self.val[step] = record

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy of the last validation, percent (the last, not the best)."""
        return self.val[max(self.val)].get('accuracy/top1') if self.val else None

    @property
    def losses(self) -> dict[int, float]:
        """Training loss by iteration: of a distillation the student's own, without its terms."""
        return {i: m.get('student.loss', m['loss']) for i, m in sorted(self.train.items())}

    @property
    def seconds(self) -> float:
        """Time spent in training steps and their data loading, seconds."""
        steps = sorted(self.train)
        return sum(
            self.train[step]['time'] * (step - before)
            for before, step in zip([0, *steps], steps, strict=False)
        )

    @property
    def parameters(self) -> int:
        """Number of parameters of the model that the run gives (the student)."""
        config = cli.student_config(self.config)
        init_default_scope(config.get('default_scope', 'mmpretrain'))
        return count_parameters(MODELS.build(config.model))

    @property
    def config(self) -> Config:
        """A copy of the config that the run was last started with."""
        return self._config.copy()

    @cached_property
    def _config(self) -> Config:
        file = newest_config(self.folder)
        if file is None:
            raise SetupError(f"there is no config of the training in '{self.folder}'")
        return configs.load_config(file)

    @property
    def seed(self) -> int | None:
        """What the random numbers were seeded with; None where the config leaves it open."""
        return (self._config.get('randomness') or {}).get('seed')

    @cached_property
    def setup(self) -> dict:
        """The config, without the seed and what changes no result."""
        found = self.config.to_dict()
        if found.pop('resume', False):
            found.pop('load_from', None)
        for key in ('work_dir', 'visualizer', 'log_level', 'log_processor'):
            found.pop(key, None)
        found['randomness'] = {**(found.get('randomness') or {}), 'seed': None}
        return found

    @cached_property
    def student(self) -> dict:
        """The config of the model that the run gives (the student)."""
        config = self.config
        init_default_scope(config.get('default_scope', 'mmpretrain'))
        model = cli.student_config(config).model.to_dict()
        return {key: value for key, value in model.items() if key != 'data_preprocessor'}

    @property
    def is_distillation(self) -> bool:
        """Whether there was a teacher."""
        return 'architecture' in self._config.model

    @property
    def is_plain_kd(self) -> bool:
        """Whether the student learned from the teacher's logits alone, in Hinton's way."""
        distiller = self._config.model.get('distiller') or {}
        kinds = [str(loss.get('type')) for loss in distiller.get('distill_losses', {}).values()]
        return not distiller.get('connectors') and [k[-12:] for k in kinds] == ['KLDivergence']

    def gave(self, other: 'Run') -> bool:
        """Whether the teacher of another run is from this one's work dir."""
        path = other.setup['model'].get('teacher_ckpt')
        path = path and Path(path).absolute()
        return bool(path) and self.folder.absolute() in (path, path.parent)

    @property
    def epochs(self) -> tuple[int, int] | None:
        """Epochs that are validated, and those planned; None if iterations are counted."""
        planned = (self._config.get('train_cfg') or {}).get('max_epochs')
        return planned and (max(self.val, default=0), planned)

    @property
    def finished(self) -> bool:
        """Whether the last epoch was validated, as far as epochs are counted."""
        return not self.epochs or not self.val or self.epochs[0] >= self.epochs[1]


@dataclass
class Group:
    """Trainings that differ in their seed only.

    Attributes:
        runs: One of each seed, at least one. Means are those of the finished ones, if any.
    """

    runs: list[Run]

    @property
    def label(self) -> str:
        """The label of the run, or that of several without their number."""
        labels = [run.label for run in self.runs]
        if len({*labels}) == 1:
            return labels[0]
        (stem, *others) = {re.sub(r'[-_. ]*(seed)?[-_. ]*\d+$', '', label) for label in labels}
        if others:
            return f'{labels[0]}, ...'
        return stem or self.runs[0].folder.absolute().parent.name

    @property
    def top1(self) -> list[float]:
        """Top-1 of the last validation of each seed, percent."""
        known = [run for run in self.runs if run.top1 is not None]
        return [run.top1 for run in [r for r in known if r.finished] or known]

    @property
    def mean(self) -> float | None:
        """Mean of the top-1, percent."""
        return statistics.mean(self.top1) if self.top1 else None

    @property
    def finished(self) -> bool:
        """Whether all of them are finished, and were validated."""
        return bool(self.top1) and all(run.finished for run in self.runs)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the top-1 over the seeds, None of a single one."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    @property
    def teacher(self) -> float | None:
        """Top-1 of the teacher on the validation data, percent."""
        known = [r.teacher['accuracy/top1'] for r in self.runs if 'accuracy/top1' in r.teacher]
        return statistics.mean(known) if known else None

    def differences(self, other: 'Group') -> list[str]:
        """Return what of the recipe differs from that of another group, as keys of configs."""
        ours, theirs = (_recipe(group.runs[0]) for group in (self, other))
        return [key for key in ours if ours[key] != theirs[key]]

    def closest(self, groups: Sequence['Group']) -> 'Group | None':
        """Return the group of the same student and validation data with the most alike recipe."""
        mine = self.runs[0]
        same = [
            group
            for group in groups
            for run in group.runs[:1]
            if run.student == mine.student and _validation(run) == _validation(mine)
        ]
        return min(same, key=lambda group: len(self.differences(group)), default=None)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return the runs in groups, in their order.

    Runs of one group have the same label where they were given one, the same config but for
    the seed, and different seeds.
    """
    groups: list[Group] = []
    for run in runs:
        for group in groups:
            first = group.runs[0]
            named = {r.label for r in (run, first) if r.label != r.folder.name}
            seeds = [r.seed for r in group.runs if r.seed is not None]
            if len(named) < 2 and run.seed not in seeds and run.setup == first.setup:
                group.runs.append(run)
                break
        else:
            groups.append(Group([run]))
    return groups


def compared(groups: Sequence[Group]) -> tuple[list[float | None], list[str], list[str]]:
    """Compare distilled students with the student alone, plain KD and their teachers.

    Returns:
        The gain of each group over the student alone in points, None where there is none to
        compare with; what there is to know, and what is wrong, in sentences.
    """
    alone = [group for group in groups if not group.runs[0].is_distillation]
    plain = [group for group in groups if group.runs[0].is_plain_kd]
    gains, notes, wrong, lonely = [], [], [], []
    for group in groups:
        run, gain = group.runs[0], None
        notes += [
            f'{r.label}: epoch {r.epochs[0]} of {r.epochs[1]}, not finished'
            for r in group.runs
            if not r.finished
        ]
        others = [other for other in alone if not any(r.gave(run) for r in other.runs)]
        base = group.closest(others) if run.is_distillation else None
        if run.is_distillation and base is None:
            lonely.append(group.label)
        if base is not None and None not in (base.mean, group.mean):
            gain = group.mean - base.mean
            if differences := group.differences(base):
                notes.append(
                    f'{group.label} and {base.label} differ in {", ".join(differences)} too, so '
                    'that the gain is not due to the teacher alone'
                )
            if group.finished and base.finished:
                wrong += _judged(group, base, 'the student alone')
                if group.teacher is not None and group.teacher < base.mean + _LEAST_LEAD:
                    wrong.append(
                        f'the teacher of {group.label} ({group.teacher:.2f} %) is not '
                        f'{_LEAST_LEAD} points better than the student alone ({base.mean:.2f} %), '
                        'and so has little to teach'
                    )
        rivals = [other for other in plain if _teacher(other.runs[0]) == _teacher(run)]
        other = group.closest(rivals) if run.is_distillation and not run.is_plain_kd else None
        if other is not None and group.finished and other.finished:
            wrong += _judged(group, other, 'plain KD')
        gains.append(gain)
    if lonely:
        notes.append(
            f'there is no run of the student alone to compare {", ".join(lonely)} with: train one '
            'with the same recipe (--method student), and add it'
        )
    return gains, notes, wrong


def _judged(group: Group, other: Group, what: str) -> list[str]:
    """Return a sentence where a group is no better than another."""
    gain = group.mean - other.mean
    figures = f'{group.mean:.2f} % against {other.mean:.2f} % ({other.label})'
    if gain <= 0:
        kind = 'worse' if gain < 0 else 'no better'
        return [f'{group.label}: {kind} than {what}, {figures}']
    if None not in (group.deviation, other.deviation):
        error = sum(g.deviation**2 / len(g.top1) for g in (group, other)) ** 0.5
        if gain < 2 * error:
            return [
                f'{group.label}: no clear difference from {what}, {figures}: the gain, {gain:.2f} '
                f'points, has a standard error of {error:.2f} over the seeds'
            ]
    return []


def _recipe(run: Run) -> dict[str, Any]:
    config, model = run.setup, run.setup['model']
    found = {key: _without_harmless(config.get(key)) for key in _RECIPE}
    given = model.get('data_preprocessor') or config.get('data_preprocessor')
    start = model.get('student_ckpt') or config.get('load_from')
    return {**found, 'data_preprocessor': given, 'load_from or student_ckpt': start}


def _without_harmless(part: Any) -> Any:
    if isinstance(part, dict):
        part = {key: value for key, value in part.items() if key not in _HARMLESS}
    return part or None


def _validation(run: Run) -> Any:
    return (run.setup.get('val_dataloader') or {}).get('dataset')


def _teacher(run: Run) -> list:
    return [run.setup['model'].get(key) for key in ('teacher', 'teacher_ckpt', 'teacher_input')]
