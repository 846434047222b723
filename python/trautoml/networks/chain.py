"""The paper's chain: convolutions with pooling one after another, then dense layers."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from trautoml.errors import SpecError
from trautoml.spec import register_architecture

# A map is averaged down to at most this side before the dense layers, so that their size does
# not grow with the image.
_DENSE_SIDE = 4

_LAYER = ("kernel", "channels", "stride", "pool_kernel", "pool_stride")

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

    Raises
    ------
    SpecError
        If the structure is not as described.

    Notes
    -----
    A stride or a pooling that would take a side below 2 is left out, so every structure builds
    for every image from 8×8.
    """
    check_structure(structure)
    height, width, channels = image_shape
    modules: list[nn.Module] = []
    for layer in structure["layers"]:
        stride = layer["stride"] if -(-min(height, width) // layer["stride"]) >= 2 else 1
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
        padding = (kernel - 1) // 2
        pooled = [(s + 2 * padding - kernel) // stride + 1 for s in (height, width)]
        if kernel > 1 and min(pooled) >= 2:
            modules.append(nn.MaxPool2d(kernel, stride, padding))
            height, width = pooled
    side = min(height, _DENSE_SIDE), min(width, _DENSE_SIDE)
    modules += [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    features = channels * side[0] * side[1]
    for units in structure["dense"]:
        modules += [nn.Linear(features, units), nn.ReLU(inplace=True)]
        features = units
    modules.append(nn.Linear(features, n_classes))
    return nn.Sequential(*modules)


def check_structure(structure: Mapping[str, Any]) -> None:
    """Check that a structure is a chain's: see `build_chain`.

    Raises
    ------
    SpecError
        If it is not; the message names the part.
    """
    layers, dense = structure.get("layers"), structure.get("dense")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise SpecError(f"layers: expected a list of objects with {_LAYER}, got {layers!r}")
    if not isinstance(dense, list):
        raise SpecError(f"dense: expected a list of widths, got {dense!r}")
    if not isinstance(structure.get("batch_norm"), bool):
        raise SpecError(f"batch_norm: expected true or false, got {structure.get('batch_norm')!r}")
    sizes = [(name, layer.get(name)) for layer in layers for name in _LAYER]
    for name, size in [*sizes, *(("dense", units) for units in dense)]:
        if not isinstance(size, int) or size < 1 or (name == "kernel" and size % 2 == 0):
            odd = "an odd" if name == "kernel" else "a"
            raise SpecError(f"{name}: expected {odd} whole number of at least 1, got {size!r}")
