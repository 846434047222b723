"""DARTS: differentiable architecture search (Liu, Simonyan & Yang, ICLR 2019)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trautoml.errors import InputError
from trautoml.networks.cells import KINDS
from trautoml.networks.supernet import CANDIDATES, cell_edges
from trautoml.search._one_shot import SupernetSearcher
from trautoml.search._shared_weights import Batch, SharedWeights
from trautoml.search._supernet import Method, Policy, Structure

_STREAM = 6
"""Keeps the initial architecture apart from other draws with the same seed."""

_INITIAL_SD = 1e-3

_WARM_UP = 0.3
"""Share of the steps in which the weights are trained alone: 15 of 50 epochs in PC-DARTS."""

_PAPER_RATE, _LARGEST_RATE = 3e-4, 0.05

_PAPER_STEPS = 50 * 390
"""50 epochs of half of CIFAR-10's 50,000 training images, in batches of 64."""

Tensors = Mapping[str, torch.Tensor]
Loss = Callable[[Tensors, Tensors], torch.Tensor]
"""``loss(weights, alphas)``."""


def architecture_gradient(
    train_loss: Loss, val_loss: Loss, weights: Tensors, alphas: Tensors, xi: float
) -> dict[str, torch.Tensor]:
    r"""Gradient of the validation loss after one step of training, by the architecture.

    .. math::
        \nabla_\alpha L_{val}(w - \xi \nabla_w L_{train}(w, \alpha), \alpha)

    Computed exactly, by differentiating through the step (the paper's Eq. 7, without the finite
    difference of its Eq. 8).

    Parameters
    ----------
    train_loss, val_loss : callable
        L, of weights and architecture.
    weights : Mapping
        w by name.
    alphas : Mapping
        alpha by name.
    xi : float
        Learning rate of the step; 0 is the first-order approximation.

    Returns
    -------
    dict
        The gradient by name, of the shapes of `alphas`.
    """
    weights = {name: weight.detach() for name, weight in weights.items()}
    alphas = {name: alpha.detach().requires_grad_() for name, alpha in alphas.items()}
    if xi > 0:
        weights = {name: weight.requires_grad_() for name, weight in weights.items()}
        loss = train_loss(weights, alphas)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        steps = zip(weights.items(), gradients, strict=True)
        weights = {name: weight - xi * gradient for (name, weight), gradient in steps}
    gradients = torch.autograd.grad(val_loss(weights, alphas), list(alphas.values()))
    return dict(zip(alphas, gradients, strict=True))


def decode(alphas: Tensors) -> Structure:
    """Derive the cells that an architecture amounts to (section 2.4 of the paper).

    On each edge the strongest operation is kept, "none" aside; of the edges into a node, the two
    whose strongest operations are strongest. Strength is the probability by the edge's softmax.

    Parameters
    ----------
    alphas : Mapping
        For each kind of cell ``(edges, candidates)``, see `SuperNetwork`.

    Returns
    -------
    dict
        A structure, see `build_cells`; of equals, the first are kept.
    """
    return {kind: _decode_cell(alpha.softmax(-1)) for kind, alpha in alphas.items()}


def _decode_cell(mixture: torch.Tensor) -> list[Any]:
    rows = mixture.tolist()
    nodes: list[Any] = []
    while rows:
        n_states = 2 + len(nodes)
        edges, rows = rows[:n_states], rows[n_states:]
        strongest = [max(range(1, len(CANDIDATES)), key=row.__getitem__) for row in edges]
        sources = sorted(range(n_states), key=lambda i: -edges[i][strongest[i]])[:2]
        nodes.append([[CANDIDATES[strongest[source]], source] for source in sorted(sources)])
    return nodes


def architecture_rate(steps: int) -> float:
    """Adam's learning rate for the architecture.

    Adam moves a parameter by about its learning rate in each step. So that fewer steps than the
    paper's 19,500 can take the architecture as far, the paper's 3e-4 is the larger the fewer steps
    there are; 0.05 at most.

    Parameters
    ----------
    steps : int
        Steps that there will be.
    """
    return min(_LARGEST_RATE, _PAPER_RATE * max(1.0, _PAPER_STEPS / steps))


@dataclass(frozen=True)
class Darts(Method):
    """DARTS, for `SupernetJob`.

    Parameters
    ----------
    learning_rate, weight_decay : float
        Of the shared weights. Default 0.025 and 3e-4, as in the paper.
    order : int
        1, or 2 to differentiate through a step of the weights. Default 1.
    """

    learning_rate: float = 0.025
    weight_decay: float = 3e-4
    order: int = 1

    def policy(self, shared: SharedWeights, nodes: int, seed: int) -> "DartsPolicy":
        """See `Method.policy`."""
        return DartsPolicy(shared, nodes, seed, order=self.order)


class DartsPolicy(Policy):
    """The architecture parameters alpha: for each edge the logits of a mixture of operations.

    Each step of the weights on a training batch follows a step of the architecture on a validation
    batch, but for the first 30 % of the steps: those are for the weights alone.
    """

    def __init__(self, shared: SharedWeights, nodes: int, seed: int, *, order: int) -> None:
        self._shared = shared
        self._order = order
        shape = len(cell_edges(nodes)), len(CANDIDATES)
        rng = np.random.default_rng([seed, _STREAM])
        self.alphas = {
            kind: torch.tensor(
                rng.normal(0, _INITIAL_SD, shape),
                dtype=torch.float32,
                device=shared.device,
                requires_grad=True,
            )
            for kind in KINDS
        }
        self._adam = torch.optim.Adam(
            self.alphas.values(),
            lr=architecture_rate(shared.steps),
            betas=(0.5, 0.999),
            weight_decay=1e-3,
        )

    def train(self, steps: int) -> None:
        """See `Policy.train`."""
        for _ in range(steps):
            train = self._shared.batch("train", self._shared.step)
            if self._shared.step >= _WARM_UP * self._shared.steps:
                self._improve(train, self._shared.batch("val", self._shared.step))
            alphas = {kind: alpha.detach() for kind, alpha in self.alphas.items()}
            self._shared.update(self._loss(train)({}, alphas))

    def _improve(self, train: Batch, val: Batch) -> None:
        gradient = architecture_gradient(
            self._loss(train),
            self._loss(val),
            dict(self._shared.supernet.named_parameters()),
            self.alphas,
            xi=self._shared.learning_rate if self._order == 2 else 0.0,
        )
        for kind, alpha in self.alphas.items():
            alpha.grad = gradient[kind]
        self._adam.step()

    def _loss(self, batch: Batch) -> Loss:
        def loss(weights: Tensors, alphas: Tensors) -> torch.Tensor:
            mixture = {kind: alpha.softmax(-1) for kind, alpha in alphas.items()}
            return self._shared.loss(mixture, batch, weights)

        return loss

    def children(self) -> list[Structure]:
        """See `Policy.children`."""
        return [decode({kind: alpha.detach() for kind, alpha in self.alphas.items()})]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See `Policy.state_dict`."""
        state = {}
        for kind, alpha in self.alphas.items():
            state[f"alpha {kind}"] = alpha.detach()
            state |= {f"{part} {kind}": v for part, v in self._adam.state[alpha].items()}
        return state

    def load_state_dict(self, state: Tensors) -> None:
        """See `Policy.load_state_dict`."""
        for kind, alpha in self.alphas.items():
            with torch.no_grad():
                alpha.copy_(state[f"alpha {kind}"])
            if f"step {kind}" in state:  # else there was no step of it yet
                averages = ("exp_avg", "exp_avg_sq")
                self._adam.state[alpha] = {"step": state[f"step {kind}"]} | {
                    part: state[f"{part} {kind}"].to(alpha.device) for part in averages
                }


class DartsSearcher(SupernetSearcher):
    """DARTS: an architecture is relaxed to mixtures of operations, and descends a gradient.

    The supergraph is trained epoch by epoch; each step of its weights on training images follows a
    step of the architecture on validation images. The strongest operations are then made a cell,
    which is trained alone. See `SupernetSearcher` for the budget.

    Two things differ from the paper, as a search has tens or hundreds of times fewer steps: the
    learning rate of the architecture (see `architecture_rate`), and that the architecture rests for
    the first 30 % of the steps, as in PC-DARTS (Xu et al. 2020). Else it goes for poolings, which
    are good before the convolutions have learnt anything.

    On a CPU this is the dearest of the searches: each step computes all operations on all edges,
    for about ten times what a step of ENAS costs.

    Parameters
    ----------
    seed : int
        Draws everything that is drawn.
    nodes : int
        Nodes of each cell. Default 3; the paper has 4.
    order : int
        1 (default), or 2 for the gradient through a step of the weights, at about four times the
        cost.

    Raises
    ------
    InputError
        If `nodes` is below 1, or `order` neither 1 nor 2.
    """

    def __init__(self, *, seed: int = 0, nodes: int = 3, order: int = 1) -> None:
        if order not in {1, 2}:
            raise InputError(f"expected order 1 or 2, got {order}")
        super().__init__(Darts(order=order), nodes=nodes, finalists=1, seed=seed)
