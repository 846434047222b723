"""A small network of a user's own, in a module that only these tests know."""

from pathlib import Path

SOURCE = '''
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, colours=3, blocks=2):
        super().__init__()
        self.stem = nn.Conv2d(colours, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
            for _ in range(blocks)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):  # such as training mode would not leave alone
                nn.init.uniform_(part.running_mean, -0.1, 0.1)
                nn.init.uniform_(part.running_var, 0.05, 0.1)

    def forward(self, images):
        maps = self.stem(images)
        for block in self.blocks:
            maps = block(maps)
        return self.head(torch.flatten(self.pool(maps), 1))


class Kinds:
    small = Small


def grey():
    return Small(colours=1)


def halved():
    return Small().half()


class Choosy(Small):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


class Stretched(Small):
    """Divides by the contrast of an image, which may have none."""

    def forward(self, images):
        spread = images - images.amin((2, 3), keepdim=True)
        return self.stem(spread / spread.amax((2, 3), keepdim=True))


class TwoWays(Small):
    """Goes another way in training."""

    def forward(self, images):
        maps = self.stem(images)
        return self.pool(maps) if self.training else self.blocks[0](maps)


class Pair(nn.Module):
    def forward(self, images):
        return torch.chunk(images, 2, 3)


def number():
    return 3


def failing():
    raise KeyError("no such thing")
'''


def write_own_networks(folder: Path) -> str:
    """Write the module and name it; the folder has to be on the path."""
    (folder / "own_networks.py").write_text(SOURCE, encoding="utf-8")
    return "own_networks"
