"""Distil a CNN into a ViT with Lightning (pip install lightning).

python examples/with_lightning.py
"""

import digits
import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mmkd_tas


class Distillation(lightning.LightningModule):
    """The losses of a distillation, and the optimizer of what learns in it."""

    def __init__(self) -> None:
        super().__init__()
        self.kd = mmkd_tas.distil(digits.student(), digits.teacher(), method='tas', input_size=16)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the sum of the losses."""
        losses = self.kd(*batch)
        self.log_dict(losses)
        return sum(losses.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of student and extra modules."""
        return torch.optim.AdamW(self.parameters(), 3e-3)


def main(epochs: int = 5) -> None:
    """Train, and print the accuracy of teacher and student."""
    lightning.seed_everything(0)
    module = Distillation()
    trainer = lightning.Trainer(max_epochs=epochs, logger=False, enable_progress_bar=False)
    trainer.fit(module, DataLoader(digits.datasets()[0], 50, shuffle=True))
    print(f'teacher {digits.accuracy(module.kd.teacher):.1f} %')
    print(f'student {digits.accuracy(module.kd.student):.1f} %')
    torch.save(module.kd.student.state_dict(), 'student.pth')


if __name__ == '__main__':
    main()
