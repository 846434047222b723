import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from trautoml.errors import SpecError
from trautoml.networks import build_chain
from trautoml.spaces import ChainSpace

LAYER = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 1, "pool_stride": 1}

# Most images small, so that the property stays cheap; the corners are there as examples.
sides = st.integers(8, 48) | st.integers(8, 112)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40)
@given(seeds, sides, sides, st.sampled_from([1, 3]), st.integers(2, 1000))
@example(0, 8, 8, 1, 2)
@example(1, 8, 8, 3, 1000)
@example(2, 224, 224, 3, 1000)
@example(3, 224, 224, 1, 2)
@example(4, 8, 224, 3, 10)
@example(5, 224, 8, 1, 10)
@example(6, 9, 223, 3, 2)
def test_every_spec_of_the_space_builds_and_trains(
    seed: int, height: int, width: int, channels: int, n_classes: int
) -> None:
    spec = ChainSpace().sample(np.random.default_rng(seed))
    network = spec.build((height, width, channels), n_classes)
    images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    logits = network(images)
    assert logits.shape == (2, n_classes)
    assert logits.isfinite().all()
    functional.cross_entropy(logits, torch.tensor([0, n_classes - 1])).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    with torch.no_grad():
        assert network.eval()(images[:1]).isfinite().all()


@pytest.mark.parametrize("seed", range(60))
def test_every_spec_of_the_space_builds_for_the_smallest_image(seed: int) -> None:
    spec = ChainSpace().sample(np.random.default_rng(seed))
    assert spec.build((8, 8, 1), 2)(torch.zeros(2, 1, 8, 8)).shape == (2, 2)


def _blocks(network: nn.Module) -> list[list[nn.Module]]:
    """Group the modules before the dense part: each convolution with what follows it."""
    blocks: list[list[nn.Module]] = []
    for module in network.children():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            break
        if isinstance(module, nn.Conv2d):
            blocks.append([])
        blocks[-1].append(module)
    return blocks


layers = st.fixed_dictionaries(
    {
        "kernel": st.sampled_from([1, 3, 5, 7]),
        "channels": st.integers(1, 3),
        "stride": st.integers(1, 4),
        "pool_kernel": st.integers(1, 5),
        "pool_stride": st.integers(1, 4),
    }
)


@given(st.lists(layers, max_size=6), st.integers(8, 224), st.integers(8, 224), st.booleans())
@example([{**LAYER, "stride": 4}, {**LAYER, "pool_kernel": 2}], 8, 8, False)
@example([{**LAYER, "stride": 3}, {**LAYER, "stride": 2}], 8, 9, True)
def test_just_what_would_take_a_side_below_2_is_left_out(
    layers: list[dict[str, int]], height: int, width: int, batch_norm: bool
) -> None:
    structure = {"layers": layers, "dense": [], "batch_norm": batch_norm}
    with torch.device("meta"):
        network = build_chain(structure, (height, width, 1), 2)
        maps = torch.empty(1, 1, height, width)
    blocks = _blocks(network)
    assert len(blocks) == len(layers)
    for layer, block in zip(layers, blocks, strict=True):
        side = min(maps.shape[2:])
        conv, pools = block[0], [m for m in block if isinstance(m, nn.MaxPool2d)]
        assert isinstance(conv, nn.Conv2d)
        kept = math.ceil(side / layer["stride"]) >= 2
        assert conv.stride[0] == (layer["stride"] if kept else 1)
        assert conv.kernel_size == (layer["kernel"],) * 2
        assert [m for m in block if isinstance(m, nn.BatchNorm2d)] or not batch_norm

        maps = conv(maps)
        side, kernel = min(maps.shape[2:]), layer["pool_kernel"]
        padded = side + 2 * ((kernel - 1) // 2)
        kept = kernel > 1 and (padded - kernel) // layer["pool_stride"] + 1 >= 2
        assert len(pools) == kept
        for pool in pools:
            assert (pool.kernel_size, pool.stride) == (kernel, layer["pool_stride"])
            maps = pool(maps)
        assert min(maps.shape[2:]) >= 2
    assert network(torch.empty(3, 1, height, width, device="meta")).shape == (3, 2)


@pytest.mark.parametrize("side", [8, 28, 224])
def test_the_dense_part_does_not_grow_with_the_image(side: int) -> None:
    structure = {"layers": [LAYER], "dense": [16], "batch_norm": False}
    network = build_chain(structure, (side, side, 3), 7)
    shapes = [tuple(m.weight.shape) for m in network.children() if isinstance(m, nn.Linear)]
    assert shapes == [(16, 8 * 4 * 4), (7, 16)]


def test_a_chain_without_layers_is_a_linear_model() -> None:
    structure: dict[str, Any] = {"layers": [], "dense": [], "batch_norm": False}
    network = build_chain(structure, (8, 8, 3), 5)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_batch_norm_replaces_the_bias() -> None:
    for batch_norm in (True, False):
        structure = {"layers": [LAYER] * 2, "dense": [], "batch_norm": batch_norm}
        kinds = [type(m) for m in build_chain(structure, (8, 8, 1), 2).children()]
        assert kinds.count(nn.BatchNorm2d) == 2 * batch_norm
        biases = [m.bias for m in build_chain(structure, (8, 8, 1), 2) if type(m) is nn.Conv2d]
        assert all((bias is None) == batch_norm for bias in biases)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": None}, "layers"), ({"layers": [3]}, "layers"), ({"layers": {}}, "layers"),
        ({"dense": None}, "dense"), ({"dense": 5}, "dense"), ({"dense": [0]}, "dense"),
        ({"dense": ["a"]}, "dense"), ({"batch_norm": None}, "batch_norm"),
        ({"batch_norm": 1}, "batch_norm"),
        *(({"layers": [{**LAYER, name: value}]}, name)
          for name in LAYER for value in (0, -1, 1.5, "3", None)),
        ({"layers": [{**LAYER, "kernel": 4}]}, "kernel"),
        *(({"layers": [{k: v for k, v in LAYER.items() if k != name}]}, name) for name in LAYER),
    ],
)  # fmt: skip
def test_a_malformed_structure_is_a_spec_error_that_names_the_part(
    change: dict[str, Any], named: str
) -> None:
    structure = {"layers": [LAYER], "dense": [16], "batch_norm": True, **change}
    with pytest.raises(SpecError, match=f"^{named}: expected .*got "):
        build_chain(structure, (8, 8, 1), 2)
