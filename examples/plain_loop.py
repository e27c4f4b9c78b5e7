"""Distil a CNN into a ViT in a plain loop, on one or several processes.

python examples/plain_loop.py
python examples/plain_loop.py --amp --compile
torchrun --nproc_per_node 2 examples/plain_loop.py
"""

import argparse
import os

import digits
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

import mmkd_tas


def main() -> None:
    """Train, and print the accuracy of teacher and student."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--amp', action='store_true')
    parser.add_argument('--compile', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    several = 'RANK' in os.environ  # set by torchrun
    if several:
        distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
        if device.type == 'cuda':
            device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
            torch.cuda.set_device(device)

    kd = mmkd_tas.distil(
        digits.student(),
        digits.teacher(),
        method='tas',
        input_size=16,
        criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        student_compile=args.compile,
    ).to(device)
    model = nn.parallel.DistributedDataParallel(kd) if several else kd
    optimizer = torch.optim.AdamW(kd.parameters(), 3e-3)
    train, _ = digits.datasets()
    sampler = DistributedSampler(train) if several else RandomSampler(train)
    batch_size = 50 // (distributed.get_world_size() if several else 1)
    loader = DataLoader(train, batch_size, sampler=sampler)
    for epoch in range(args.epochs):
        if several:
            sampler.set_epoch(epoch)
        for images, labels in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                losses = model(images.to(device), labels.to(device))
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        named = ', '.join(f'{name} {loss.item():.3f}' for name, loss in losses.items())
        print(f'epoch {epoch + 1}: {named}')

    if not several or distributed.get_rank() == 0:
        print(f'teacher {digits.accuracy(kd.teacher):.1f} %')
        print(f'student {digits.accuracy(kd.student):.1f} %')
        torch.save(kd.student.state_dict(), 'student.pth')
    if several:
        distributed.destroy_process_group()


if __name__ == '__main__':
    main()
