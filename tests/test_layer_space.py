import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trautoml.spaces import ChainSpace, LayerSpace
from trautoml.spaces.layers import (
    Convolution,
    Dense,
    Layer,
    LayerState,
    Pooling,
    Step,
    Termination,
)
from trautoml.spec import ModelSpec

sides = st.integers(8, 112)
seeds = st.integers(0, 2**32 - 1)


def random_walk(space: LayerSpace, seed: int) -> tuple[Step, ...]:
    rng = np.random.default_rng(seed)
    return space.walk(lambda _, actions: actions[int(rng.integers(len(actions)))])


def layers_of(walk: Sequence[Step]) -> list[Layer]:
    return [step.action for step in walk]


def all_walks(space: LayerSpace) -> list[tuple[Step, ...]]:
    """Take every branch once, by counting through the choices like an odometer."""
    walks, digits = [], [0]
    while digits:
        sizes: list[int] = []

        def choose(_: LayerState, actions: Sequence[Layer], sizes: list[int] = sizes) -> Layer:
            sizes.append(len(actions))
            if len(sizes) > len(digits):
                digits.append(0)
            return actions[digits[len(sizes) - 1]]

        walks.append(space.walk(choose))
        while digits and digits[-1] + 1 == sizes[len(digits) - 1]:
            digits.pop()
        if digits:
            digits[-1] += 1
    return walks


def multiply_adds(spec: ModelSpec, side: int) -> int:
    """Of the convolutions, for a square image of 3 channels."""
    total, channels = 0, 3
    for layer in spec.structure["layers"]:
        side = math.ceil(side / layer["stride"])
        total += side**2 * layer["kernel"] ** 2 * channels * layer["channels"]
        channels, side = layer["channels"], math.ceil(side / layer["pool_stride"])
    return total


@given(sides, seeds)
def test_walks_keep_the_constraints(side: int, seed: int) -> None:
    layers = layers_of(random_walk(LayerSpace(side), seed))
    assert isinstance(layers[0], Convolution)
    assert isinstance(layers[-1], Termination)
    assert len(layers) - 1 <= 8
    for before, after in itertools.pairwise(layers):
        if isinstance(before, Pooling):
            side = side // 2 if before.kernel == 2 else math.ceil(side / 2)
            assert side >= 2
            assert not isinstance(after, Pooling)
        if side > 8 and not isinstance(after, Termination):
            assert isinstance(after, Pooling) == isinstance(before, Convolution)
        if side > 8 and isinstance(after, Termination):
            assert len(layers) - 1 == 8
        if isinstance(before, Dense):
            assert isinstance(after, Dense | Termination)
        if isinstance(after, Dense):
            assert side <= 8
        if isinstance(before, Dense) and isinstance(after, Dense):
            assert after.units <= before.units
    dense = [layer for layer in layers if isinstance(layer, Dense)]
    assert [layer.count for layer in dense] == [1, 2][: len(dense)]


@settings(max_examples=20)
@given(st.integers(8, 33), seeds)
def test_a_walk_is_exactly_its_network(side: int, seed: int) -> None:
    space = LayerSpace(side)
    walk = random_walk(space, seed)
    network = space.spec(walk).build((side, side + 3, 1), 5)
    assert isinstance(network, nn.Sequential)
    maps = torch.zeros(2, 1, side, side + 3)
    sides, units = [side], []
    built: list[Layer] = []
    for module in network:
        maps = module(maps)
        if isinstance(module, nn.Conv2d):
            built.append(Convolution(module.kernel_size[0], module.out_channels))
            sides.append(maps.shape[2])
        elif isinstance(module, nn.MaxPool2d):
            built.append(Pooling(int(module.kernel_size), int(module.stride)))
            sides.append(maps.shape[2])
        elif isinstance(module, nn.Linear):
            units.append(module.out_features)
    built += [Dense(width, i) for i, width in enumerate(units[:-1], 1)]
    assert layers_of(walk) == [*built, Termination()]
    assert [step.state.last for step in walk] == [None, *built]
    assert [step.state.depth for step in walk] == list(range(len(walk)))
    bins = [0 if size > 8 else 1 if size > 4 else 2 for size in sides]
    assert [step.state.size_bin for step in walk][: len(bins)] == bins


def test_all_walks_of_a_small_space_and_all_different() -> None:
    # conv, then termination, or one of 12 convolutions, 2 poolings, 4 dense layers and its end
    space = LayerSpace(8, max_depth=2)
    walks = all_walks(space)
    assert len(walks) == 12 * (1 + 12 + 2 + 4)
    assert len({space.spec(walk) for walk in walks}) == len(walks)
    # a third layer: all of 19 after convolutions, no pooling after pooling, none wider after dense
    space = LayerSpace(8, max_depth=3)
    walks = all_walks(space)
    assert len(walks) == 12 * (1 + 12 * 19 + 2 * 17 + (2 + 3 + 4 + 5))
    assert len({space.spec(walk) for walk in walks}) == len(walks)


@pytest.mark.parametrize(
    ("side", "kernels"),
    [(8, {(2, 2), (2, 3), (3, 2), (3, 3)}), (5, {(2,), (3, 3)}), (3, {(3,)}), (2, {()})],
)
def test_a_pooling_leaves_two_pixels(side: int, kernels: set[tuple[int, ...]]) -> None:
    """8, 4, 2; 5, 3, 2 where halves are rounded up, and 5, 2 where they are rounded down."""
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)

        def pool(_: LayerState, actions: Sequence[Layer], rng: np.random.Generator = rng) -> Layer:
            poolings = [action for action in actions if isinstance(action, Pooling)]
            return poolings[int(rng.integers(len(poolings)))] if poolings else actions[0]

        layers = layers_of(LayerSpace(side).walk(pool))
        seen.add(tuple(layer.kernel for layer in layers if isinstance(layer, Pooling)))
    assert seen == kernels


@given(sides, seeds)
def test_a_walk_is_told_from_its_spec(side: int, seed: int) -> None:
    space = LayerSpace(side)
    walk = random_walk(space, seed)
    assert space.walk_of(space.spec(walk)) == walk


def test_specs_that_are_no_walks() -> None:
    space = LayerSpace(32)
    rng = np.random.default_rng(0)
    assert [space.walk_of(ChainSpace().sample(rng)) for _ in range(50)] == [None] * 50
    spec = space.spec(random_walk(space, 0))
    assert space.walk_of(ModelSpec("other", spec.structure, spec.hyper)) is None
    assert LayerSpace(8).walk_of(spec) is not None
    assert LayerSpace(256).walk_of(spec) is None  # its representation is not small at the end
    deep = space.spec(LayerSpace(8, max_depth=9).walk(lambda _, actions: actions[0]))
    assert len(deep.structure["layers"]) == 9
    assert LayerSpace(8).walk_of(deep) is None


@pytest.mark.parametrize("side", [16, 28, 32, 64])
def test_the_cost_of_the_dearest_network_is_bounded(side: int) -> None:
    space = LayerSpace(side)

    def dearest(_: LayerState, actions: Sequence[Layer]) -> Layer:
        wide = Convolution(5, 64)
        return wide if wide in actions else actions[0]

    most = multiply_adds(space.spec(space.walk(dearest)), side)
    for seed in range(200):
        assert multiply_adds(space.spec(random_walk(space, seed)), side) <= most
    # the first representations cost what they do in the chain space, the small ones a constant
    chain = [{"kernel": 5, "channels": 64, "stride": 1, "pool_kernel": 2, "pool_stride": 2}] * 4
    halving = ModelSpec(
        "chain", {**space.spec(()).structure, "layers": chain}, space.spec(()).hyper
    )
    assert most <= multiply_adds(halving, side) + 6 * 64 * 5**2 * 64**2
