from collections.abc import Iterator
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from trautoml.device import one_thread
from trautoml.errors import InputError
from trautoml.networks import SuperNetwork
from trautoml.networks.cells import KINDS, check_cells
from trautoml.networks.supernet import CANDIDATES, cell_edges
from trautoml.search.darts import (
    DartsPolicy,
    DartsSearcher,
    architecture_gradient,
    architecture_rate,
    decode,
)
from trautoml.spaces import CellSpace

seeds = st.integers(0, 2**32 - 1)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(torch.device("cpu")):
        yield


def unrolled(train_loss: Any, val_loss: Any, weights: Tensors, alphas: Tensors, xi: float) -> float:
    """L_val(w - xi grad L_train(w, alpha), alpha), by plain autograd."""
    weights = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    gradients = torch.autograd.grad(train_loss(weights, alphas), list(weights.values()))
    ahead = {
        name: (weight - xi * gradient).detach()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    return float(val_loss(ahead, alphas).detach())


def slope(
    losses: tuple[Any, Any], weights: Tensors, alphas: Tensors, along: Tensors, xi: float
) -> float:
    """Central difference of the unrolled loss along a direction."""
    step = 1e-6
    ends = [
        unrolled(*losses, weights, {k: a + sign * step * along[k] for k, a in alphas.items()}, xi)
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * step)


def random_like(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    return {k: torch.from_numpy(rng.normal(size=t.shape)) for k, t in tensors.items()}


@pytest.mark.parametrize("xi", [0.0, 0.3])
def test_the_gradient_of_smooth_losses_by_differences(xi: float) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": torch.from_numpy(rng.normal(size=4)), "v": torch.from_numpy(rng.normal(size=2))}
    alphas = {"a": torch.from_numpy(rng.normal(size=(4, 2)))}

    def train_loss(w: Tensors, a: Tensors) -> torch.Tensor:
        return (a["a"].softmax(-1) @ w["v"] * w["w"]).cos().sum() + w["w"].pow(4).sum()

    def val_loss(w: Tensors, a: Tensors) -> torch.Tensor:
        return ((w["w"] @ a["a"].tanh()) * w["v"]).exp().sum()

    gradient = architecture_gradient(train_loss, val_loss, weights, alphas, xi)["a"]
    for i, j in np.ndindex(4, 2):
        along = {"a": torch.zeros(4, 2, dtype=torch.float64)}
        along["a"][i, j] = 1.0
        expected = slope((train_loss, val_loss), weights, alphas, along, xi)
        assert float(gradient[i, j]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("xi", [0.0, 0.05])
def test_the_gradient_of_a_supernetwork_by_differences(xi: float) -> None:
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    supernet = SuperNetwork(1, (8, 8, 1), 3).double()
    weights = {k: p.detach() for k, p in supernet.named_parameters()}
    shape = len(cell_edges(1)), len(CANDIDATES)
    alphas = {kind: torch.from_numpy(rng.normal(size=shape)) for kind in KINDS}

    def loss_on(images: torch.Tensor, labels: torch.Tensor) -> Any:
        def loss(w: Tensors, a: Tensors) -> torch.Tensor:
            mixture = {kind: alpha.softmax(-1) for kind, alpha in a.items()}
            logits = torch.func.functional_call(supernet, w, (images, mixture))
            return functional.cross_entropy(logits, labels)

        return loss

    train_loss, val_loss = (
        loss_on(torch.from_numpy(rng.normal(size=(6, 1, 8, 8))), torch.arange(6) % 3)
        for _ in range(2)
    )
    gradient = architecture_gradient(train_loss, val_loss, weights, alphas, xi)
    for _ in range(4):
        along = random_like(alphas, rng)
        expected = slope((train_loss, val_loss), weights, alphas, along, xi)
        total = sum(float((gradient[k] * along[k]).sum()) for k in KINDS)
        assert total == pytest.approx(expected, rel=1e-4)


def test_the_gradient_changes_nothing() -> None:
    weights = {"w": torch.ones(2, requires_grad=True)}
    alphas = {"a": torch.ones(2, requires_grad=True)}

    def loss(w: Tensors, a: Tensors) -> torch.Tensor:
        return (w["w"] * a["a"]).square().sum()

    for xi in (0.0, 0.1):
        architecture_gradient(loss, loss, weights, alphas, xi)
    assert weights["w"].grad is None
    assert alphas["a"].grad is None
    assert weights["w"].tolist() == alphas["a"].tolist() == [1.0, 1.0]


@given(seeds, st.integers(1, 4), st.booleans())
def test_decoding_keeps_the_two_strongest_edges_of_a_node(
    seed: int, nodes: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = len(cell_edges(nodes)), len(CANDIDATES)
    drawn = {k: rng.integers(0, 2, shape) if ties else rng.normal(0, 2, shape) for k in KINDS}
    structure = decode({k: torch.from_numpy(values).float() for k, values in drawn.items()})
    check_cells(structure)  # among others, two different inputs a node
    for kind, values in drawn.items():
        mixture = np.exp(values) / np.exp(values).sum(1, keepdims=True)
        row_of = {edge: row for row, edge in enumerate(cell_edges(nodes))}
        assert len(structure[kind]) == nodes
        for node, terms in enumerate(structure[kind]):
            strength = [mixture[row_of[node, i], 1:].max() for i in range(2 + node)]
            best = max(sum(strength[i] for i in pair) for pair in combinations(range(2 + node), 2))
            assert sum(strength[i] for _, i in terms) == pytest.approx(best)
            for operation, source in terms:
                row = mixture[row_of[node, source]]
                assert row[CANDIDATES.index(operation)] == pytest.approx(row[1:].max())


@given(seeds, st.integers(1, 4))
def test_decoding_finds_the_cells_that_stand_out(seed: int, nodes: int) -> None:
    structure = CellSpace(nodes).sample(np.random.default_rng(seed)).structure
    alphas = {kind: torch.zeros(len(cell_edges(nodes)), len(CANDIDATES)) for kind in KINDS}
    for kind, cell in structure.items():
        for node, terms in enumerate(cell):
            for operation, source in terms:
                row = cell_edges(nodes).index((node, source))
                alphas[kind][row, CANDIDATES.index(operation)] = 1.0
    assert decode(alphas) == structure


def test_none_weakens_an_edge_and_is_never_kept() -> None:
    alphas = torch.zeros(5, len(CANDIDATES))
    alphas[2, 3] = 3.0  # the strongest operation of all, but
    alphas[2, 0] = 9.0  # its edge is nearly off
    structure = decode(dict.fromkeys(KINDS, alphas))
    assert [source for _, source in structure["normal"][1]] == [1, 2]
    assert [source for _, source in structure["normal"][0]] == [0, 1]


def test_the_rate_of_the_architecture_makes_up_for_few_steps() -> None:
    assert architecture_rate(19_500) == architecture_rate(100_000) == 3e-4
    assert architecture_rate(1_950) == pytest.approx(3e-3)
    assert architecture_rate(1) == 0.05


class Toy:
    """Shared weights whose loss is the smaller, the more a mixture has of one operation."""

    def __init__(self, good: str) -> None:
        self.step, self.steps, self.steps_per_epoch = 0, 60, 60
        self.device = torch.device("cpu")
        self.learning_rate = 0.1
        self.supernet = SimpleNamespace(named_parameters=lambda: [("w", torch.ones(()))])
        self._column = CANDIDATES.index(good)

    def batch(self, split: str, index: int) -> tuple[str, int]:
        return split, index

    def loss(self, mixture: Tensors, batch: Any, weights: Tensors | None = None) -> torch.Tensor:
        (weight,) = (weights or {"w": torch.ones((), requires_grad=True)}).values()
        share = sum(alpha[:, self._column].sum() for alpha in mixture.values())
        return (share - 10.0).square() * weight.square() if batch[0] == "val" else weight * share

    def update(self, loss: torch.Tensor) -> None:
        self.step += 1


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("good", ["skip_connect", "dil_conv_3x3"])
def test_the_architecture_goes_for_the_operation_that_validates_better(
    good: str, order: int
) -> None:
    policy = DartsPolicy(Toy(good), 2, 0, order=order)  # type: ignore[arg-type]
    policy.train(policy._shared.steps_per_epoch)
    (structure,) = policy.children()
    assert {operation for cell in structure.values() for node in cell for operation, _ in node} == {
        good
    }


@pytest.mark.parametrize("options", [{"order": 0}, {"order": 3}, {"nodes": 0}])
def test_impossible_parameters_are_input_errors(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected"):
        DartsSearcher(**options)
