"""The supergraph: one network that holds the weights of every cell network (ENAS, DARTS)."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import nn

from trautoml.networks.cells import KINDS, CellFrame, Nodes, build_cells
from trautoml.networks.operations import NONE, OPERATIONS

CANDIDATES = (NONE, *OPERATIONS)
"""What DARTS mixes on an edge; the columns of a mixture."""


def cell_edges(nodes: int) -> tuple[tuple[int, int], ...]:
    """All ``(node, input)`` of a cell, in the order of a mixture's rows: node by node."""
    return tuple((node, source) for node in range(nodes) for source in range(2 + node))


class SuperNetwork(CellFrame):
    """Shared weights for every operation on every edge of every cell of the stack.

    Its normalisations in cells neither scale nor shift, as in DARTS: what the operations put out
    stays comparable.

    Parameters
    ----------
    nodes : int
        Nodes of each of the two cells.
    image_shape : tuple of int
        ``(H, W, C)``.
    n_classes : int
        Number of classes.
    """

    def __init__(self, nodes: int, image_shape: tuple[int, int, int], n_classes: int) -> None:
        everything: Nodes = [list(product(OPERATIONS, range(2 + node))) for node in range(nodes)]
        super().__init__(dict.fromkeys(KINDS, everything), image_shape, n_classes, affine=False)
        self.nodes = nodes
        self._shape = image_shape, n_classes

    def forward(
        self, images: torch.Tensor, choice: Mapping[str, Nodes] | Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Compute one child, or a mixture of all.

        Parameters
        ----------
        images : torch.Tensor
            Float ``(N, C, H, W)``.
        choice : Mapping
            The structure of a child, see `build_cells`; or for each kind of cell the weights
            ``(edges, candidates)`` of all its operations, in the order of `cell_edges` and of
            `CANDIDATES`: then a node is the weighted sum of all operations on all earlier states.

        Returns
        -------
        torch.Tensor
            Logits ``(N, n_classes)``.
        """
        return self.compute(
            images,
            {
                kind: self._mixed(cell) if isinstance(cell, torch.Tensor) else cell
                for kind, cell in choice.items()
            },
        )

    def _mixed(self, weights: torch.Tensor) -> Nodes:
        nodes: list[list[tuple[str, int, torch.Tensor]]] = [[] for _ in range(self.nodes)]
        for (node, source), row in zip(cell_edges(self.nodes), weights, strict=True):
            # The zero operation has nothing to add but its weight, which the others lack.
            nodes[node] += [(o, source, w) for o, w in zip(OPERATIONS, row[1:], strict=True)]
        return nodes

    def child(self, structure: Mapping[str, Any]) -> nn.Module:
        """Cut out a child, with a copy of its weights.

        It is the network that `build_cells` makes, and computes what the supergraph computes for
        `structure`.

        Raises
        ------
        SpecError
            If the structure is malformed.
        """
        with torch.device("meta"):  # no weights are drawn
            network = build_cells(structure, *self._shape)
        shared = self.state_dict()
        own = {
            # The normalisations of the cells scale by 1 and shift by 0 until they are trained.
            name: shared[name].clone()
            if name in shared
            else torch.full(tensor.shape, float(name.endswith("weight")))
            for name, tensor in network.state_dict().items()
        }
        network.load_state_dict(own, assign=True)
        network.train(self.training)
        return network
