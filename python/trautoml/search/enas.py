"""ENAS: efficient neural architecture search (Pham, Guan, Zoph, Le & Dean, ICML 2018)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trautoml.search._controller import ControllerChoice, LstmController
from trautoml.search._one_shot import SupernetSearcher
from trautoml.search._shared_weights import SharedWeights
from trautoml.search._supernet import Method, Policy, Structure
from trautoml.spaces import CellSpace

_CHILDREN = 8
"""Children that are drawn to be compared after each epoch; the paper draws some 10 at the end."""


@dataclass(frozen=True)
class Enas(Method):
    """ENAS, for `SupernetJob`.

    Parameters
    ----------
    learning_rate, weight_decay : float
        Of the shared weights. Default 0.05 and 1e-4, as in the paper.
    controller_rate : float
        Of the controller. Default 0.005; the paper has 0.00035, for some hundred times as many
        updates.
    baseline_decay : float
        Weight of the past in the moving average of rewards. Default 0.95.
    entropy : float
        Weight of the entropy. Default 1e-4, as in the paper.
    """

    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    controller_rate: float = 0.005
    baseline_decay: float = 0.95
    entropy: float = 1e-4

    def policy(self, shared: SharedWeights, nodes: int, seed: int) -> "EnasPolicy":
        """See `Method.policy`."""
        return EnasPolicy(self, shared, nodes, seed)


class EnasPolicy(Policy):
    """A controller that draws children.

    The weights are trained first, each batch on another child; then the controller, once for each
    of as many validation batches, with the accuracy of one child on it.
    """

    def __init__(self, method: Enas, shared: SharedWeights, nodes: int, seed: int) -> None:
        self._method, self._shared, self._seed = method, shared, seed
        self._space = CellSpace(nodes)
        self._controller = self._new_controller()

    def _new_controller(self) -> LstmController:
        return LstmController(
            seed=self._seed,
            learning_rate=self._method.controller_rate,
            baseline_decay=self._method.baseline_decay,
            entropy=self._method.entropy,
        )

    def _draw(self, controller: LstmController) -> tuple[ControllerChoice, Structure]:
        choice = controller.choice()
        return choice, self._space.cells(choice)

    def train(self, steps: int) -> None:
        """See `Policy.train`."""
        shared, controller = self._shared, self._controller
        first = shared.step
        for step in range(first, first + steps):
            _, structure = self._draw(controller)
            shared.update(shared.loss(structure, shared.batch("train", step)))
        for step in range(first, first + steps):
            choice, structure = self._draw(controller)
            batch = shared.batch("val", step)
            controller.update([(choice, shared.n_correct(structure, batch) / len(batch[1]))])

    def children(self) -> list[Structure]:
        """See `Policy.children`."""
        copy = self._new_controller()  # so that the draws of the training are not used up
        copy.load_state_dict(self._controller.state_dict())
        drawn = [self._draw(copy)[1] for _ in range(_CHILDREN)]
        return list({json.dumps(structure): structure for structure in drawn}.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Policy.state_dict`."""
        return self._controller.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """See `Policy.load_state_dict`."""
        self._controller.load_state_dict(state)


class EnasSearcher(SupernetSearcher):
    """ENAS: a controller learns to draw cells by how well they do with weights that all share.

    The weights and the controller are trained in turn, an epoch each. The best `finalists` of 8
    children that are then drawn are trained alone. See `SupernetSearcher` for the budget.

    Parameters
    ----------
    seed : int
        Draws everything that is drawn.
    nodes : int
        Nodes of each cell. Default 3; the paper has 5.
    finalists : int
        Children that are trained alone, at most. Default 2.

    Raises
    ------
    InputError
        If `nodes` or `finalists` is below 1.
    """

    def __init__(self, *, seed: int = 0, nodes: int = 3, finalists: int = 2) -> None:
        super().__init__(Enas(), nodes=nodes, finalists=finalists, seed=seed)
