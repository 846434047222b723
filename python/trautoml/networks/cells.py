"""Cell networks: two small cells, stacked to a depth that suits the image (NASNet, ENAS, DARTS)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import nn

from trautoml.errors import SpecError
from trautoml.networks.operations import (
    OPERATIONS,
    FactorizedReduce,
    batch_norm,
    make_operation,
    relu_conv_norm,
)
from trautoml.spec import register_architecture

KINDS = ("normal", "reduction")
"""The two cells of a structure."""

Nodes: TypeAlias = Sequence[Iterable[Sequence[Any]]]
"""For each node the terms of its sum: ``[operation, input]`` or ``[operation, input, weight]``."""


@dataclass(frozen=True)
class CellStack:
    """How cells are stacked.

    Attributes
    ----------
    stem_stride : int
        What the stem divides the sides of the image by: a power of two.
    cells : tuple of str
        Kind of each cell; a reduction halves the sides, rounding up, and doubles the channels.
    channels : int
        Channels of each node of the first cell.
    """

    stem_stride: int
    cells: tuple[str, ...]
    channels: int


def _alternate(reductions: int) -> tuple[str, ...]:
    return ("normal", *("reduction", "normal") * reductions)


_STACKS = (
    (20, CellStack(1, _alternate(1), 16)),
    (48, CellStack(1, _alternate(2), 8)),
    (112, CellStack(2, _alternate(2), 8)),
    (math.inf, CellStack(4, _alternate(3), 8)),
)


def stack_for(image_shape: tuple[int, int, int]) -> CellStack:
    """Depth and width of the cell network for images ``(H, W, C)``.

    They depend on the side ``sqrt(H W)`` of a square with as many pixels, as the cost does:

    =========  ===========  =============  ========  ==================
    side       stem stride  cells          channels  last map
    =========  ===========  =============  ========  ==================
    up to 20   1            N R N          16 to 32  4 x 4 for 8 x 8
    up to 48   1            N R N R N      8 to 32   7 x 7 for 28 x 28
    up to 112  2            N R N R N      8 to 32   12 x 12 for 96 x 96
    above      4            N R N R N R N  8 to 64   7 x 7 for 224 x 224
    =========  ===========  =============  ========  ==================

    The channels are those of one node; a cell puts out as many for each of its nodes. They are few,
    so that one processor core trains some hundred images of 28 x 28 a second.
    """
    side = math.sqrt(image_shape[0] * image_shape[1])
    return next(stack for largest, stack in _STACKS if side <= largest)


class Cell(nn.Module):
    """Nodes that sum operations on the outputs of the two cells before and on earlier nodes.

    Parameters
    ----------
    kind : str
        One of `KINDS`; the operations of a reduction on the two outputs have stride 2.
    before, last : int
        Channels of the outputs of the last cell but one and of the last cell.
    channels : int
        Channels of a node; even.
    after_reduction : bool
        Whether the last cell has halved its maps, as then the first input has to be halved too.
    nodes : Nodes
        The operations that the cell is to hold.
    affine : bool
        Whether its normalisations scale and shift.
    """

    def __init__(
        self,
        kind: str,
        *,
        before: int,
        last: int,
        channels: int,
        after_reduction: bool,
        nodes: Nodes,
        affine: bool,
    ) -> None:
        super().__init__()
        first = FactorizedReduce if after_reduction else relu_conv_norm
        self.first = first(before, channels, affine=affine)
        self.second = relu_conv_norm(last, channels, affine=affine)
        self.operations = nn.ModuleDict()
        for node, terms in enumerate(nodes):
            for operation, source in terms:
                stride = 2 if kind == "reduction" and source < 2 else 1
                self.operations[_name(node, operation, source)] = make_operation(
                    operation, channels, stride, affine=affine
                )

    def forward(self, before: torch.Tensor, last: torch.Tensor, nodes: Nodes) -> torch.Tensor:
        """Compute the concatenation of `nodes`, whose operations the cell holds."""
        states = [self.first(before), self.second(last)]
        for node, terms in enumerate(nodes):
            states.append(reduce(torch.add, (self._term(states, node, *term) for term in terms)))
        return torch.cat(states[2:], dim=1)

    def _term(
        self,
        states: Sequence[torch.Tensor],
        node: int,
        operation: str,
        source: int,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        term: torch.Tensor = self.operations[_name(node, operation, source)](states[source])
        return term if weight is None else weight * term


def _name(node: int, operation: str, source: int) -> str:
    return f"node{node}_input{source}_{operation}"


class CellFrame(nn.Module):
    """Stem, stacked cells and head: all of a network but the choice of what a cell computes.

    Parameters
    ----------
    nodes : Mapping
        The operations that the cells of each kind are to hold.
    image_shape : tuple of int
        ``(H, W, C)``.
    n_classes : int
        Width of the last layer.
    affine : bool
        Whether the normalisations of the cells scale and shift.
    """

    def __init__(
        self,
        nodes: Mapping[str, Nodes],
        image_shape: tuple[int, int, int],
        n_classes: int,
        *,
        affine: bool,
    ) -> None:
        super().__init__()
        stack = stack_for(image_shape)
        self.stem = _stem(image_shape[2], stack)
        self.cells = nn.ModuleList()
        self._kinds = stack.cells
        channels, before, last = stack.channels, stack.channels, stack.channels
        for previous, kind in pairwise(("normal", *stack.cells)):
            channels *= 2 if kind == "reduction" else 1
            self.cells.append(
                Cell(
                    kind,
                    before=before,
                    last=last,
                    channels=channels,
                    after_reduction=previous == "reduction",
                    nodes=nodes[kind],
                    affine=affine,
                )
            )
            before, last = last, channels * len(nodes[kind])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, n_classes))

    def compute(self, images: torch.Tensor, nodes: Mapping[str, Nodes]) -> torch.Tensor:
        """Logits ``(N, n_classes)`` of float images ``(N, C, H, W)``."""
        before = last = self.stem(images)
        for kind, cell in zip(self._kinds, self.cells, strict=True):
            before, last = last, cell(before, last, nodes[kind])
        logits: torch.Tensor = self.head(last)
        return logits


def _stem(channels: int, stack: CellStack) -> nn.Sequential:
    """One 3 x 3 convolution, or one for every halving."""
    halvings = stack.stem_stride.bit_length() - 1
    modules: list[nn.Module] = []
    for stride in [2] * halvings or [1]:
        if modules:
            modules.append(nn.ReLU())
        convolution = nn.Conv2d(channels, stack.channels, 3, stride, padding=1, bias=False)
        modules += [convolution, batch_norm(stack.channels)]
        channels = stack.channels
    return nn.Sequential(*modules)


class CellNetwork(CellFrame):
    """A cell network as `build_cells` makes it."""

    def __init__(
        self, structure: Mapping[str, Nodes], image_shape: tuple[int, int, int], n_classes: int
    ) -> None:
        super().__init__(structure, image_shape, n_classes, affine=True)
        self._structure = structure

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float images ``(N, C, H, W)`` to logits ``(N, n_classes)``."""
        return self.compute(images, self._structure)


@register_architecture("cells")
def build_cells(
    structure: Mapping[str, Any], image_shape: tuple[int, int, int], n_classes: int
) -> nn.Module:
    """Build a cell network: what it shares with networks for other images is its two cells.

    Parameters
    ----------
    structure : Mapping
        ``normal`` and ``reduction``: the two cells, each a list of nodes. A node is a pair
        ``[[operation, input], [operation, input]]`` whose sum it is: `OPERATIONS` on two different
        earlier states, of which 0 and 1 are the outputs of the last cell but one and of the last
        cell (the stem for the first cell), and 2, 3, ... the nodes before. A cell's output is the
        concatenation of all its nodes.
    image_shape : tuple of int
        ``(H, W, C)``; it determines the stack, see `stack_for`.
    n_classes : int
        Width of the last layer.

    Returns
    -------
    torch.nn.Module
        ``(N, C, H, W)`` float to logits ``(N, n_classes)``.

    Raises
    ------
    SpecError
        If the structure is not as described.
    """
    check_cells(structure)
    return CellNetwork(structure, image_shape, n_classes)


def check_cells(structure: Mapping[str, Any]) -> None:
    """Check that a structure is one that `build_cells` takes.

    Raises
    ------
    SpecError
        If it is not.
    """
    if set(structure) != set(KINDS):
        raise SpecError(f"expected the cells {' and '.join(KINDS)}, got {sorted(structure)}")
    for kind in KINDS:
        nodes = structure[kind]
        if not isinstance(nodes, list) or not nodes:
            raise SpecError(f"{kind}: expected a list of at least one node, got {nodes!r}")
        for i, node in enumerate(nodes):
            if not _is_node(node, n_states=2 + i):
                raise SpecError(
                    f"{kind}: expected of node {i} [[operation, input], [operation, input]] with "
                    f"operations of {OPERATIONS} and two different inputs of 0 to {1 + i}, "
                    f"got {node!r}"
                )


def _is_node(node: Any, n_states: int) -> bool:
    if not isinstance(node, list) or len(node) != 2:
        return False
    if not all(isinstance(term, list) and len(term) == 2 for term in node):
        return False
    inputs = [source for _, source in node]
    return (
        all(operation in OPERATIONS for operation, _ in node)
        and all(type(source) is int and 0 <= source < n_states for source in inputs)
        and inputs[0] != inputs[1]
    )
