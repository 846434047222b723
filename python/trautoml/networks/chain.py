"""The paper's chain: convolutions with pooling one after another, then dense layers."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from trautoml.spec import register_architecture

# A map is averaged down to at most this side before the dense layers, so that their size does
# not grow with the image.
_DENSE_SIDE = 4

# The default of 0.1 leaves the running statistics far behind after the dozen steps of a probe.
_BATCH_NORM_MOMENTUM = 0.3


@register_architecture("chain")
def build_chain(
    structure: Mapping[str, Any], image_shape: tuple[int, int, int], n_classes: int
) -> nn.Module:
    """Build a chain network.

    Parameters
    ----------
    structure : Mapping
        ``layers``: a list of ``{kernel, channels, stride, pool_kernel, pool_stride}`` (odd kernels,
        zero padded; ``pool_kernel`` 1 means no pooling), ``dense``: widths of the dense layers,
        ``batch_norm``: whether each convolution is followed by batch normalisation.
    image_shape : tuple of int
        ``(H, W, C)``.
    n_classes : int
        Width of the last layer.

    Returns
    -------
    torch.nn.Sequential
        ``(N, C, H, W)`` float to logits ``(N, n_classes)``.

    Notes
    -----
    A stride or a pooling that would take a side below 2 is left out, so every structure builds
    for every image from 8×8.
    """
    height, width, channels = image_shape
    modules: list[nn.Module] = []
    for layer in structure["layers"]:
        stride = layer["stride"] if min(height, width) >= 2 * layer["stride"] else 1
        modules.append(
            nn.Conv2d(
                channels,
                layer["channels"],
                layer["kernel"],
                stride,
                padding=layer["kernel"] // 2,
                bias=not structure["batch_norm"],
            )
        )
        channels = layer["channels"]
        height, width = -(-height // stride), -(-width // stride)
        if structure["batch_norm"]:
            modules.append(nn.BatchNorm2d(channels, momentum=_BATCH_NORM_MOMENTUM))
        modules.append(nn.ReLU(inplace=True))
        kernel, stride = layer["pool_kernel"], layer["pool_stride"]
        if kernel > 1 and min(height, width) >= 2 * stride and min(height, width) >= kernel:
            padding = (kernel - 1) // 2
            modules.append(nn.MaxPool2d(kernel, stride, padding))
            height, width = ((s + 2 * padding - kernel) // stride + 1 for s in (height, width))
    side = min(height, _DENSE_SIDE), min(width, _DENSE_SIDE)
    modules += [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    features = channels * side[0] * side[1]
    for units in structure["dense"]:
        modules += [nn.Linear(features, units), nn.ReLU(inplace=True)]
        features = units
    modules.append(nn.Linear(features, n_classes))
    return nn.Sequential(*modules)
