"""Distil a CNN into a ViT with Hugging Face's Accelerate (pip install accelerate).

python examples/with_accelerate.py
accelerate launch --num_processes 2 --cpu examples/with_accelerate.py
"""

import digits
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import mmkd_tas


def main(epochs: int = 5) -> None:
    """Train, and print the accuracy of teacher and student."""
    torch.manual_seed(0)
    accelerator = Accelerator()
    kd = mmkd_tas.distil(digits.student(), digits.teacher(), method='tas', input_size=16)
    model, optimizer, loader = accelerator.prepare(
        kd,
        torch.optim.AdamW(kd.parameters(), 3e-3),
        DataLoader(digits.datasets()[0], 50, shuffle=True),
    )
    for _ in range(epochs):
        for images, labels in loader:
            accelerator.backward(sum(model(images, labels).values()))
            optimizer.step()
            optimizer.zero_grad()
    kd = accelerator.unwrap_model(model)
    accelerator.print(f'teacher {digits.accuracy(kd.teacher):.1f} %')
    accelerator.print(f'student {digits.accuracy(kd.student):.1f} %')
    accelerator.save(kd.student.state_dict(), 'student.pth')
    accelerator.end_training()


if __name__ == '__main__':
    main()
