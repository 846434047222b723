from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trautoml.device import one_thread
from trautoml.errors import SpecError
from trautoml.networks import SuperNetwork, build_cells
from trautoml.networks.cells import KINDS
from trautoml.networks.operations import OPERATIONS
from trautoml.networks.supernet import CANDIDATES, cell_edges
from trautoml.spaces import CellSpace

NODES = 3
SHAPE = (9, 8, 2)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(torch.device("cpu")):
        yield


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def supernet() -> SuperNetwork:
    """A supernetwork whose running statistics are no longer those of the start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SuperNetwork(NODES, SHAPE, 3)
    mixture = {kind: torch.ones(len(cell_edges(NODES)), len(CANDIDATES)) for kind in KINDS}
    with torch.no_grad(), one_thread(torch.device("cpu")):
        network(draw(16, 2, 9, 8, seed=1), mixture)
    return network


def sample(seed: int) -> dict[str, Any]:
    return dict(CellSpace(NODES).sample(np.random.default_rng(seed)).structure)


def one_hot(structure: dict[str, Any]) -> dict[str, torch.Tensor]:
    mixture = {kind: torch.zeros(len(cell_edges(NODES)), len(CANDIDATES)) for kind in KINDS}
    for kind, nodes in structure.items():
        for node, terms in enumerate(nodes):
            for operation, source in terms:
                row = cell_edges(NODES).index((node, source))
                mixture[kind][row, CANDIDATES.index(operation)] = 1.0
    return mixture


@settings(max_examples=25)
@given(seeds, st.booleans())
def test_a_child_computes_bit_for_bit_what_the_supernetwork_computes(
    supernet: SuperNetwork, seed: int, training: bool
) -> None:
    structure, images = sample(seed), draw(5, 2, 9, 8, seed=seed % 1000)
    supernet.train(training)
    child = supernet.child(structure)
    assert child.training == training
    with torch.no_grad():
        expected = child(images)
        assert torch.equal(supernet(images, structure), expected)
        mixed = supernet(images, one_hot(structure))
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=10)
@given(seeds)
def test_a_child_is_the_network_that_build_cells_makes(supernet: SuperNetwork, seed: int) -> None:
    structure = sample(seed)
    child, built = supernet.child(structure), build_cells(structure, SHAPE, 3)
    assert str(child) == str(built)
    for (name, own), (other, parameter) in zip(
        child.named_parameters(), built.named_parameters(), strict=True
    ):
        assert (name, own.shape, own.requires_grad) == (other, parameter.shape, True)


def test_a_child_has_weights_of_its_own_and_draws_none(supernet: SuperNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    state = torch.get_rng_state()
    child = supernet.child(sample(0)).train()
    assert torch.equal(torch.get_rng_state(), state)
    child(draw(4, 2, 9, 8)).square().sum().backward()
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.sub_(parameter.grad)
    assert all(torch.equal(before[name], t) for name, t in supernet.state_dict().items())


def test_a_mixture_is_the_weighted_sum_on_every_edge() -> None:
    torch.manual_seed(0)
    network = SuperNetwork(2, (8, 8, 1), 2).eval()
    cell = network.cells[0]
    edges = cell_edges(2)
    assert edges == ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))
    weights = draw(len(edges), len(CANDIDATES), seed=5)
    before, last = draw(2, 16, 8, 8, seed=6), draw(2, 16, 8, 8, seed=7)
    with torch.no_grad():
        states = [cell.get_submodule("first")(before), cell.get_submodule("second")(last)]
        for node in range(2):
            total = torch.zeros_like(states[0])
            for row, (at, source) in enumerate(edges):
                for column, operation in enumerate(CANDIDATES):
                    if at == node and operation != "none":
                        name = f"operations.node{node}_input{source}_{operation}"
                        value = cell.get_submodule(name)(states[source])
                        total += weights[row, column] * value
            states.append(total)
        expected = torch.cat(states[2:], 1)
        computed: list[torch.Tensor] = []
        cell.register_forward_hook(lambda *args: computed.append(args[2]))
        cell.register_forward_pre_hook(lambda _, args: (before, last, args[2]))
        network(draw(2, 1, 8, 8), dict.fromkeys(KINDS, weights))
    torch.testing.assert_close(computed[0], expected)


def test_the_weight_of_none_only_counts_by_what_it_leaves_to_others() -> None:
    network = SuperNetwork(1, (8, 8, 1), 2)
    weights = torch.ones(2, len(CANDIDATES), requires_grad=True)
    network(draw(4, 1, 8, 8), dict.fromkeys(KINDS, weights)).square().sum().backward()
    assert weights.grad is not None
    assert not weights.grad[:, 0].any()
    assert weights.grad[:, 1:].all()


def test_every_operation_on_every_edge_has_weights_of_its_own(supernet: SuperNetwork) -> None:
    for cell in supernet.cells:
        operations = dict(cell.get_submodule("operations").named_children())
        assert set(operations) == {
            f"node{node}_input{source}_{operation}"
            for node in range(NODES)
            for source in range(2 + node)
            for operation in OPERATIONS
        }
        parameters = [p for module in operations.values() for p in module.parameters()]
        assert len({id(p) for p in parameters}) == len(parameters)


def test_a_malformed_child_is_a_spec_error(supernet: SuperNetwork) -> None:
    with pytest.raises(SpecError):
        supernet.child({"normal": [], "reduction": []})
