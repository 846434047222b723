"""The cell space of NASNet, ENAS and DARTS: two cells, of nodes that sum two operations each."""

from dataclasses import asdict
from itertools import combinations
from typing import Any

from trautoml.errors import InputError, SpecError
from trautoml.spaces._base import Choice, GivenChoice, SearchSpace
from trautoml.spec import Hyperparameters, ModelSpec

CELL_OPERATIONS = (
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations that the space chooses from."""


class CellSpace(SearchSpace):
    """A normal and a reduction cell, with hyper-parameters; how cells are stacked is not searched.

    Parameters
    ----------
    nodes : int
        Nodes of each cell. Default 3: a pair of cells then trains half as fast again on a CPU as
        with the papers' 4, and of the three nodes each can still stand on the one before.

    Raises
    ------
    InputError
        If `nodes` is below 1.
    """

    def __init__(self, nodes: int = 3) -> None:
        if nodes < 1:
            raise InputError(f"expected cells of at least 1 node, got {nodes}")
        self.nodes = nodes

    def define(self, choice: Choice) -> ModelSpec:
        """Choose the cells and their hyper-parameters."""
        structure = self.cells(choice)
        hyper = Hyperparameters(
            learning_rate=choice.suggest_float("learning_rate", 2e-2, 0.5, log=True),
            momentum=choice.suggest_float("momentum", 0.5, 0.95),
            weight_decay=choice.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
            batch_size=2 ** choice.suggest_int("log2_batch_size", 4, 7),
            init_sd=choice.suggest_float("init_sd", 0.3, 2.0, log=True),
        )
        return ModelSpec("cells", structure, hyper)

    def cells(self, choice: Choice) -> dict[str, Any]:
        """Choose a structure: for each node two different inputs and an operation on each."""
        return {
            kind: [self._node(choice, kind, i) for i in range(self.nodes)]
            for kind in ("normal", "reduction")
        }

    def params_of(self, spec: ModelSpec) -> dict[str, Any] | None:
        """See `SearchSpace.params_of`."""
        if spec.architecture != "cells":
            return None
        hyper = asdict(spec.hyper)
        params = hyper | {"log2_batch_size": hyper.pop("batch_size").bit_length() - 1}
        for kind, nodes in spec.structure.items():
            for i, terms in enumerate(nodes):
                params[f"{kind}{i}_inputs"] = ",".join(str(source) for _, source in terms)
                params |= {f"{kind}{i}_op{j}": operation for j, (operation, _) in enumerate(terms)}
        try:
            return params if self.define(GivenChoice(params)) == spec else None
        except SpecError:
            return None

    @staticmethod
    def _node(choice: Choice, kind: str, i: int) -> list[list[str | int]]:
        # Pairs as text: an optuna storage keeps no lists.
        pairs = [f"{a},{b}" for a, b in combinations(range(2 + i), 2)]
        inputs = choice.suggest_categorical(f"{kind}{i}_inputs", pairs).split(",")
        return [
            [choice.suggest_categorical(f"{kind}{i}_op{j}", CELL_OPERATIONS), int(source)]
            for j, source in enumerate(inputs)
        ]
