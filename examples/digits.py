"""What the examples share: data, a student, and a teacher that is trained on them."""

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Return handwritten digits of 16 x 16 pixels: 1,000 to train with, 797 to test with."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, 16, mode='bicubic')
    labels = torch.tensor(digits.target)
    train, test = slice(1000), slice(1000, None)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def student() -> nn.Module:
    """Return a small ViT, random."""
    size = dict(img_size=16, patch_size=4, in_chans=1, embed_dim=32, depth=4, num_heads=2)
    return timm.create_model('vit_tiny_patch16_224', num_classes=10, **size)


def teacher(epochs: int = 5) -> nn.Module:
    """Return a small CNN, trained for a second."""
    layers, before = [], 1
    for width, stride in ((8, 1), (16, 2), (32, 2), (32, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(epochs):
        for images, labels in DataLoader(datasets()[0], 50, shuffle=True):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of the test images that a model knows, in percent."""
    device = next(model.parameters()).device
    images, labels = (tensor.to(device) for tensor in datasets()[1].tensors)
    training = model.training
    right = model.eval()(images).argmax(1) == labels
    model.train(training)
    return 100 * right.float().mean().item()
