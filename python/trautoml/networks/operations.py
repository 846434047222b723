"""The candidate operations of cells: those of DARTS, in a form that a CPU can train."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

# The default of 0.1 leaves the running statistics far behind after the dozen steps of a probe.
_BATCH_NORM_MOMENTUM = 0.3

NONE = "none"
"""The zero operation. DARTS' mixtures have it; a finished cell doesn't."""


class FactorizedReduce(nn.Module):
    """ReLU and two 1 x 1 convolutions, of the even and of the odd rows and columns.

    Maps ``(N, before, H, W)`` to ``(N, after, ceil(H / 2), ceil(W / 2))``; `after` is even.
    """

    def __init__(self, before: int, after: int, *, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(before, after // 2, 1, bias=False)
        self.odd = nn.Conv2d(before, after // 2, 1, bias=False)
        self.norm = batch_norm(after, affine=affine)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Halve the maps."""
        height, width = maps.shape[2:]
        # Of an odd side there is one odd row less: zeros stand in for it.
        shifted = functional.pad(maps[:, :, 1::2, 1::2], (0, width % 2, 0, height % 2))
        parts = [
            self.even(functional.relu(maps[:, :, ::2, ::2])),
            self.odd(functional.relu(shifted)),
        ]
        halved: torch.Tensor = self.norm(torch.cat(parts, dim=1))
        return halved


def relu_conv_norm(before: int, after: int, *, affine: bool) -> nn.Module:
    """ReLU, 1 x 1 convolution, normalisation: ``(N, before, H, W)`` to ``(N, after, H, W)``."""
    convolution = nn.Conv2d(before, after, 1, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, batch_norm(after, affine=affine))


def batch_norm(channels: int, *, affine: bool = True) -> nn.Module:
    """Batch normalisation; `affine`: whether it scales and shifts too."""
    return nn.BatchNorm2d(channels, momentum=_BATCH_NORM_MOMENTUM, affine=affine)


def make_operation(name: str, channels: int, stride: int, *, affine: bool = True) -> nn.Module:
    """Make one of `OPERATIONS`.

    Parameters
    ----------
    name : str
        Which one.
    channels : int
        Channels of its input and of its output; even.
    stride : int
        1, or 2 to halve the map, rounding up.
    affine : bool
        Whether its normalisation scales and shifts too. Default True.

    Returns
    -------
    torch.nn.Module
        ``(N, channels, H, W)`` to ``(N, channels, ceil(H / stride), ceil(W / stride))``.

    Notes
    -----
    As in DARTS (Liu et al. 2019), except that a separable convolution is one pair of a depthwise
    and a pointwise convolution, not two in succession. That halves the cost of operations that are
    the dearest on a CPU; a cell can still put two in succession. All but the identity end in a
    batch normalisation, so that what a node adds up is of one scale.
    """
    return _MAKERS[name](channels, stride, affine)


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


def _pool(kind: Callable[..., nn.Module], channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(kind(3, stride, padding=1), batch_norm(channels, affine=affine))


def _separable(
    kernel: int, dilation: int, channels: int, stride: int, affine: bool
) -> nn.Sequential:
    depthwise = nn.Conv2d(
        channels,
        channels,
        kernel,
        stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=channels,
        bias=False,
    )
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, batch_norm(channels, affine=affine))


_MAKERS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "skip_connect": _skip,
    "max_pool_3x3": partial(_pool, nn.MaxPool2d),
    "avg_pool_3x3": partial(_pool, partial(nn.AvgPool2d, count_include_pad=False)),
    "sep_conv_3x3": partial(_separable, 3, 1),
    "sep_conv_5x5": partial(_separable, 5, 1),
    "dil_conv_3x3": partial(_separable, 3, 2),
    "dil_conv_5x5": partial(_separable, 5, 2),
}

OPERATIONS = tuple(_MAKERS)
"""The operations that a finished cell may have."""
