import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from trautoml.device import one_thread
from trautoml.errors import SpecError
from trautoml.networks import build_chain
from trautoml.networks.morphism import deepen, deepen_dense, inherit, widen, widen_dense
from trautoml.spaces import ChainSpace

Structure = dict[str, Any]
Shape = tuple[int, int, int]

LAYER = {"kernel": 3, "channels": 4, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
NORMED: Structure = {"layers": [LAYER, {**LAYER, "channels": 6}], "dense": [5], "batch_norm": True}
PLAIN: Structure = {**NORMED, "batch_norm": False}
SHAPE: Shape = (12, 11, 3)
N_CLASSES = 3

both = pytest.mark.parametrize("structure", [NORMED, PLAIN], ids=["batch norm", "plain"])
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(8, 20)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(torch.device("cpu")):
        yield


def images(shape: Shape, n: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    height, width, channels = shape
    return torch.randn(n, channels, height, width, generator=generator, dtype=dtype)


def build(structure: Structure, shape: Shape = SHAPE, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_chain(structure, shape, N_CLASSES)


def train(network: nn.Module, inputs: torch.Tensor, steps: int) -> None:
    """Move weights and running statistics away from where they begin."""
    labels = torch.arange(len(inputs)) % N_CLASSES
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()


def trained(structure: Structure, shape: Shape = SHAPE, dtype: torch.dtype = torch.float32) -> Any:
    network = build(structure, shape).to(dtype)
    train(network, images(shape, 8, 1, dtype), 3)
    return network


def grown(parent: nn.Module, before: Structure, after: Structure, **options: Any) -> Any:
    options = {"inputs": images(SHAPE, 32, 2), "seed": 0, "shape": SHAPE, **options}
    child = build(after, options.pop("shape"), seed=9).to(options["inputs"].dtype)
    inherit(child, after, parent, before, **options)
    return child


def error(child: nn.Module, parent: nn.Module, inputs: torch.Tensor, *, training: bool) -> float:
    """Greatest difference of the outputs, relative to the greatest output if that is above 1."""
    with torch.no_grad():  # of copies: in training mode the running statistics move
        ours, theirs = (copy.deepcopy(n).train(training)(inputs) for n in (child, parent))
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def draw_step(structure: Structure, rng: np.random.Generator) -> Structure:
    conv = int(rng.integers(len(structure["layers"])))
    steps: list[Callable[[], Structure]] = [
        lambda: widen(
            structure, conv, structure["layers"][conv]["channels"] + int(rng.integers(1, 30))
        ),
        lambda: deepen(structure, conv, int(rng.choice([1, 3, 5]))),
    ]
    if structure["dense"]:
        dense = int(rng.integers(len(structure["dense"])))
        steps += [
            lambda: widen_dense(
                structure, dense, structure["dense"][dense] + int(rng.integers(1, 90))
            ),
            lambda: deepen_dense(structure, dense),
        ]
    return steps[int(rng.integers(len(steps)))]()


# --- the function is kept ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str
)
@settings(max_examples=40)
@given(seeds, sides, sides, st.sampled_from([1, 3]), st.integers(1, 4))
@example(0, 8, 8, 1, 4)
@example(1, 20, 20, 3, 4)
def test_any_row_of_steps_keeps_the_function(
    dtype: torch.dtype,
    tolerance: float,
    seed: int,
    height: int,
    width: int,
    channels: int,
    n_steps: int,
) -> None:
    rng, shape = np.random.default_rng(seed), (height, width, channels)
    structure = dict(ChainSpace().sample(rng).structure)
    first = network = trained(structure, shape, dtype)
    batch, others = images(shape, 8, 2, dtype), images(shape, 4, 3, dtype)
    for step in range(n_steps):
        after = draw_step(structure, rng)
        network = grown(network, structure, after, inputs=batch, seed=step, shape=shape)
        structure = after
    assert error(network, first, others, training=False) < tolerance
    # Here the batch of the identity layers is the one they are judged by.
    assert error(network, first, batch, training=True) < 10 * tolerance


SMALL = {**LAYER, "stride": 2}
"""Twice in a row on an image of 8 × 8: the second stride or pooling is left out."""


@pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "plain"])
@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("side", [8, 9, 11])
def test_strides_and_poolings_that_are_left_out_do_not_matter(
    side: int, layer: int, batch_norm: bool
) -> None:
    structure = {"layers": [SMALL] * 4, "dense": [], "batch_norm": batch_norm}
    shape = (side, 8, 1)
    parent = trained(structure, shape)
    batch = images(shape, 16, 2)
    for after in (widen(structure, layer, 7), deepen(structure, layer, 5)):
        child = grown(parent, structure, after, inputs=batch, shape=shape)
        for training in (False, True):
            assert error(child, parent, batch, training=training) < 1e-5


def test_a_chain_of_dense_layers_only_grows() -> None:
    structure: Structure = {"layers": [], "dense": [6], "batch_norm": True}
    parent = trained(structure)
    for after in (widen_dense(structure, 0, 13), deepen_dense(structure, 0)):
        child = grown(parent, structure, after)
        assert error(child, parent, images(SHAPE, 8, 3), training=False) < 1e-5


@both
def test_layers_side_by_side_that_look_alike_are_told_apart_or_need_not_be(
    structure: Structure,
) -> None:
    parent = trained(structure)
    for _ in range(3):  # each time one more layer that the new one could be
        after = deepen_dense(deepen(structure, 1, 3), 0)
        middle = deepen(structure, 1, 3)
        child = grown(grown(parent, structure, middle), middle, after)
        assert error(child, parent, images(SHAPE, 8, 3), training=False) < 1e-5
        train(child, images(SHAPE, 16, 1), 2)
        structure, parent = after, child


# --- what training makes of it ----------------------------------------------------------------


@both
def test_copies_get_different_gradients_and_part(structure: Structure) -> None:
    after = widen(structure, 0, 8)
    child = grown(trained(structure), structure, after)
    weight = child[0].weight
    twins = [(i, j) for i in range(8) for j in range(i) if torch.equal(weight[i], weight[j])]
    assert len(twins) >= 4
    inputs = images(SHAPE, 16, 1)
    functional.cross_entropy(child.train()(inputs), torch.arange(16) % N_CLASSES).backward()
    gradients = weight.grad
    assert any(gradients[i].abs().max() > 1e-6 for i, _ in twins)
    for i, j in twins:
        if gradients[i].abs().max() > 1e-6:  # else the unit is dead
            assert not torch.allclose(gradients[i], gradients[j], rtol=1e-3, atol=0)
    train(child, inputs, 3)
    assert all(not torch.equal(weight[i], weight[j]) for i, j in twins)


def test_copies_of_a_dense_unit_get_different_gradients() -> None:
    child = grown(trained(PLAIN), PLAIN, widen_dense(PLAIN, 0, 11))
    dense = next(m for m in child if isinstance(m, nn.Linear))
    functional.cross_entropy(child(images(SHAPE, 16, 1)), torch.arange(16) % N_CLASSES).backward()
    differing = 0
    for i in range(5, 11):
        j = next(j for j in range(5) if torch.equal(dense.weight[i], dense.weight[j]))
        assert torch.equal(dense.bias[i], dense.bias[j])
        if dense.weight.grad[i].any():
            assert not torch.allclose(dense.weight.grad[i], dense.weight.grad[j], rtol=1e-3, atol=0)
            differing += 1
    assert differing


@pytest.mark.parametrize("layer", [0, 1])
def test_an_identity_layer_is_nearly_the_identity_in_training_mode(layer: int) -> None:
    batch, after = images(SHAPE, 256, 2), deepen(NORMED, layer, 3)
    parent = trained(NORMED)
    child = grown(parent, NORMED, after, inputs=batch)
    start = 4 * (layer + 1)  # after convolution, normalisation, rectifier and pooling of each layer
    assert isinstance(child[start], nn.Conv2d)
    assert isinstance(child[start + 1], nn.BatchNorm2d)
    assert error(child, parent, batch, training=True) < 1e-5
    # On images that it was not made with it is the identity but for the spread of the moments.
    assert error(child, parent, images(SHAPE, 256, 3), training=True) < 0.1
    # The running statistics start where training would keep them.
    maps = copy.deepcopy(nn.Sequential(*list(parent)[:start])).train()(batch)
    norm = child[start + 1]
    assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, maps.var((0, 2, 3), correction=0), atol=1e-5)


def test_what_a_layer_learns_next_is_not_bound_by_the_parent() -> None:
    parent = trained(NORMED)
    before = {k: v.clone() for k, v in parent.state_dict().items()}
    child = grown(parent, NORMED, widen(NORMED, 1, 9))
    train(child, images(SHAPE, 16, 1), 2)
    assert all(torch.equal(before[k], v) for k, v in parent.state_dict().items())


# --- the caller's things ----------------------------------------------------------------------


@both
@pytest.mark.parametrize("step", [lambda s: widen(s, 1, 9), lambda s: deepen(s, 1, 3)])
def test_nothing_of_the_callers_is_touched(
    structure: Structure, step: Callable[[Structure], Structure]
) -> None:
    parent, inputs, given_structure = (
        trained(structure),
        images(SHAPE, 8, 1),
        copy.deepcopy(structure),
    )
    after = step(given_structure)
    assert given_structure == structure
    before = {k: v.clone() for k, v in parent.state_dict().items()}
    pixels, random_state, mode = inputs.clone(), torch.get_rng_state(), parent.training
    child = build(after)
    parameters = list(child.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        inherit(child, after, parent, structure, inputs=inputs, seed=0)
        assert torch.equal(torch.get_rng_state(), random_state)
    assert parent.training is mode
    assert torch.equal(inputs, pixels)
    assert all(torch.equal(before[k], v) for k, v in parent.state_dict().items())
    assert all(
        a is b and a.requires_grad for a, b in zip(child.parameters(), parameters, strict=True)
    )


@both
def test_the_seed_alone_draws_the_copies(structure: Structure) -> None:
    parent, after = trained(structure), widen(structure, 0, 12)
    first, again, other = (grown(parent, structure, after, seed=seed) for seed in (3, 3, 4))
    states = [n.state_dict() for n in (first, again, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


# --- structures -------------------------------------------------------------------------------


def test_the_steps_change_just_what_they_name() -> None:
    second = NORMED["layers"][1]
    assert widen(NORMED, 1, 7) == {**NORMED, "layers": [LAYER, {**second, "channels": 7}]}
    assert widen_dense(NORMED, 0, 6) == {**NORMED, "dense": [6]}
    assert deepen_dense(NORMED, 0) == {**NORMED, "dense": [5, 5]}
    identity = {"kernel": 5, "channels": 4, "stride": 1, "pool_kernel": 1, "pool_stride": 1}
    assert deepen(NORMED, 0, 5) == {**NORMED, "layers": [LAYER, identity, second]}


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (lambda: widen(NORMED, 2, 9), "layers"), (lambda: widen(NORMED, -1, 9), "layers"),
        (lambda: widen(NORMED, "0", 9), "layers"), (lambda: deepen(NORMED, 2, 3), "layers"),
        (lambda: widen_dense(NORMED, 1, 9), "dense"), (lambda: deepen_dense(NORMED, 1), "dense"),
        (lambda: widen(NORMED, 0, 4), "channels"), (lambda: widen(NORMED, 0, 3), "channels"),
        (lambda: widen(NORMED, 0, 5.5), "channels"), (lambda: widen_dense(NORMED, 0, 5), "units"),
        (lambda: widen_dense(NORMED, 0, "9"), "dense"), (lambda: deepen(NORMED, 0, 4), "kernel"),
        (lambda: deepen(NORMED, 0, 0), "kernel"),
        (lambda: widen({**NORMED, "layers": None}, 0, 9), "layers"),
        (lambda: deepen_dense({"layers": [], "dense": []}, 0), "batch_norm"),
    ],
)  # fmt: skip
def test_an_impossible_step_is_a_spec_error_that_names_the_part(
    step: Callable[[], object], named: str
) -> None:
    with pytest.raises(SpecError, match=f"^{named}: expected .*got "):
        step()


@pytest.mark.parametrize(
    "after",
    [
        NORMED,
        {**NORMED, "dense": [4]},
        {**NORMED, "dense": []},
        {**NORMED, "dense": [5, 6]},
        {**NORMED, "dense": [5, 5, 5]},
        {**NORMED, "layers": [LAYER]},
        {**NORMED, "layers": [{**LAYER, "channels": 3}, NORMED["layers"][1]]},
        {**NORMED, "layers": [{**LAYER, "channels": 8, "kernel": 5}, NORMED["layers"][1]]},
        {**NORMED, "layers": [{**LAYER, "pool_kernel": 3}, NORMED["layers"][1]]},
        {**NORMED, "layers": [LAYER, LAYER, NORMED["layers"][1]]},
        widen(widen(NORMED, 0, 8), 1, 8),
        widen_dense(widen(NORMED, 0, 8), 0, 8),
        deepen(deepen(NORMED, 0, 3), 1, 3),
        widen(deepen(NORMED, 0, 3), 1, 8),
        {**widen(NORMED, 0, 8), "batch_norm": False},
    ],
    ids=repr,
)
def test_structures_that_are_not_one_step_apart_are_refused(after: Structure) -> None:
    child, parent = build(after), build(NORMED)
    before = {k: v.clone() for k, v in child.state_dict().items()}
    with pytest.raises(SpecError, match=r"expected structures one step apart.*got "):
        inherit(child, after, parent, NORMED, inputs=images(SHAPE, 4, 0), seed=0)
    assert all(torch.equal(before[k], v) for k, v in child.state_dict().items())
    with pytest.raises(SpecError, match=r"^batch_norm: expected"):
        inherit(
            child, {**after, "batch_norm": None}, parent, NORMED, inputs=images(SHAPE, 4, 0), seed=0
        )
