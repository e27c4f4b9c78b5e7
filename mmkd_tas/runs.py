"""What a finished or running training left in its work dir."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.registry import MODELS, init_default_scope

from . import cli, configs
from .errors import SetupError
from .models.utils import count_parameters


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
            SetupError: If there is no record of a training in the folder.
        """
        folder = Path(folder)
        run = cls(label or folder.name, folder)
        for file in sorted(folder.glob('*/vis_data/scalars.json')):
            for line in file.read_text().splitlines():
                run._add(json.loads(line))
        if not run.train:
            raise SetupError(f"there is no record of a training in '{folder}'")
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
        file = max(self.folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
        config = cli.student_config(configs.load_config(file))
        init_default_scope(config.get('default_scope', 'mmpretrain'))
        return count_parameters(MODELS.build(config.model))
