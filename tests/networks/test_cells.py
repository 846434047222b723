import json
import math
from collections.abc import Iterator
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
from trautoml.networks import build_cells
from trautoml.networks.cells import KINDS, stack_for
from trautoml.networks.operations import OPERATIONS, FactorizedReduce, make_operation
from trautoml.spaces import CellSpace

sides = st.integers(1, 12)
NODE = [["sep_conv_3x3", 0], ["skip_connect", 1]]
STRUCTURE: dict[str, Any] = {"normal": [NODE], "reduction": [NODE]}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(torch.device("cpu")):
        yield


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=15)
@given(sides, sides, st.sampled_from([1, 2]), st.booleans())
@example(1, 1, 2, True)
def test_operations_keep_channels_and_halve_rounding_up(
    name: str, height: int, width: int, stride: int, affine: bool
) -> None:
    operation = make_operation(name, 4, stride, affine=affine)
    maps = draw(2, 4, height, width).requires_grad_()
    out = operation(maps)
    assert out.shape == (2, 4, math.ceil(height / stride), math.ceil(width / stride))
    out.square().sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()
    norms = [m for m in operation.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.affine == affine for norm in norms)
    assert len(norms) == (name != "skip_connect" or stride == 2)


@pytest.mark.parametrize(
    ("name", "reach"),
    [("sep_conv_3x3", 1), ("sep_conv_5x5", 2), ("dil_conv_3x3", 2), ("dil_conv_5x5", 4),
     ("max_pool_3x3", 1), ("avg_pool_3x3", 1), ("skip_connect", 0)],
)  # fmt: skip
def test_an_operation_sees_as_far_as_its_name_says(name: str, reach: int) -> None:
    operation = make_operation(name, 2, 1).eval()
    maps = torch.ones(1, 2, 11, 11, requires_grad=True)
    operation(maps * draw(1, 2, 11, 11).abs())[0, :, 5, 5].sum().backward()
    assert maps.grad is not None
    rows = maps.grad[0].abs().sum((0, 2)).nonzero().flatten().tolist()
    assert set(rows) <= set(range(5 - reach, 6 + reach))
    if name != "max_pool_3x3":
        step = 2 if name.startswith("dil") else 1
        assert rows == list(range(5 - reach, 6 + reach, step))


@given(sides, sides)
def test_factorized_reduce_by_the_loop(height: int, width: int) -> None:
    module = FactorizedReduce(3, 4, affine=True).eval()
    maps = draw(1, 3, height, width)
    out = module(maps)[0]
    weights = module.even.weight[:, :, 0, 0], module.odd.weight[:, :, 0, 0]
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            halves = []
            for shift, weight in enumerate(weights):
                row, column = 2 * i + shift, 2 * j + shift
                inside = row < height and column < width
                pixel = maps[0, :, row, column].relu() if inside else torch.zeros(3)
                halves.append(weight @ pixel)
            torch.testing.assert_close(out[:, i, j], torch.cat(halves) / math.sqrt(1 + 1e-5))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 50))
def test_a_larger_image_has_no_shallower_stack(height: int, width: int, more: int) -> None:
    small, large = stack_for((height, width, 1)), stack_for((height + more, width, 1))
    for stack in (small, large):
        assert stack.channels % 2 == 0
        assert stack.stem_stride.bit_count() == 1
    assert len(small.cells) <= len(large.cells)
    assert small.stem_stride <= large.stem_stride
    assert small.cells.count("reduction") <= large.cells.count("reduction")


@pytest.mark.parametrize(
    ("side", "stem", "reductions", "last"),
    [(8, 1, 1, 4), (16, 1, 1, 8), (28, 1, 2, 7), (32, 1, 2, 8), (40, 1, 2, 10), (64, 2, 2, 8),
     (96, 2, 2, 12), (224, 4, 3, 7)],
)  # fmt: skip
def test_the_stack_of_usual_images(side: int, stem: int, reductions: int, last: int) -> None:
    stack = stack_for((side, side, 3))
    assert (stack.stem_stride, stack.cells.count("reduction")) == (stem, reductions)
    maps: list[torch.Size] = []
    network = build_cells(STRUCTURE, (side, side, 3), 2).to("meta")
    head = network.get_submodule("head")
    head.register_forward_pre_hook(lambda _, args: maps.append(args[0].shape))
    network(torch.empty(2, 3, side, side, device="meta"))
    assert maps == [(2, stack.channels * 2**reductions, last, last)]


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), shapes, st.integers(2, 1000))
@example(0, 4, (8, 8, 1), 2)
@example(1, 4, (8, 120, 3), 1000)
@example(2, 2, (224, 224, 3), 2)
@example(3, 3, (1, 1, 48), 2)
def test_every_spec_of_the_space_builds_and_trains(
    seed: int, nodes: int, shape: tuple[int, int, int], n_classes: int
) -> None:
    spec = CellSpace(nodes).sample(np.random.default_rng(seed))
    network = spec.build(shape, n_classes)
    images = draw(2, shape[2], shape[0], shape[1])
    if min(shape[:2]) < 8:  # a batch of 2 would leave one value per channel and nothing to train
        network.eval()
    logits = network(images)
    assert logits.shape == (2, n_classes)
    functional.cross_entropy(logits, torch.tensor([0, n_classes - 1])).backward()
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert network.eval()(images[:1]).isfinite().all()


def test_a_network_by_hand() -> None:
    structure = {
        "normal": [
            [["max_pool_3x3", 0], ["skip_connect", 1]],
            [["skip_connect", 2], ["skip_connect", 0]],
        ],
        "reduction": [[["skip_connect", 1], ["sep_conv_5x5", 0]]],
    }
    network = build_cells(structure, (8, 8, 1), 3).eval()
    images = draw(2, 1, 8, 8)
    stem = network.get_submodule("stem")(images)
    normal, reduction, last = network.get_submodule("cells").children()

    def part(cell: nn.Module, name: str, maps: torch.Tensor) -> torch.Tensor:
        return cell.get_submodule(name)(maps)

    first, second = part(normal, "first", stem), part(normal, "second", stem)
    node = part(normal, "operations.node0_input0_max_pool_3x3", first) + second
    normal_out = torch.cat([node, node + first], 1)

    first, second = part(reduction, "first", stem), part(reduction, "second", normal_out)
    reduction_out = part(reduction, "operations.node0_input1_skip_connect", second)
    reduction_out = reduction_out + part(reduction, "operations.node0_input0_sep_conv_5x5", first)

    first, second = part(last, "first", normal_out), part(last, "second", reduction_out)
    node = part(last, "operations.node0_input0_max_pool_3x3", first) + second
    features = torch.cat([node, node + first], 1).mean((2, 3))
    expected = part(network, "head.2", features)
    torch.testing.assert_close(network(images), expected)


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    structure = json.loads(json.dumps({kind: [NODE, NODE] for kind in KINDS}))
    part: Any = structure
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return structure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("path", "value"),
    [([], value) for value in (None, [], 3, "ab", {})]
    + [([1], value) for value in (None, [], NODE[:1], [*NODE, NODE[0]], "ab", {"a": 1, "b": 2})]
    + [([1, 0], value) for value in (None, [], ["skip_connect"], ["skip_connect", 0, 1], "ab")]
    + [([1, 0, 0], value) for value in ("none", "conv", 3, None, [], {})]
    + [([1, 0, 1], value) for value in (3, -1, 1, 0.0, True, "0", None)]
    + [([0, 0, 1], 2)],
)  # fmt: skip
def test_a_malformed_structure_is_a_spec_error_that_names_the_cell(
    kind: str, path: list[Any], value: Any
) -> None:
    with pytest.raises(SpecError, match=rf"^{kind}: expected .*got "):
        build_cells(changed([kind, *path], value), (8, 8, 1), 2)


@pytest.mark.parametrize("structure", [{}, {"normal": [NODE]}, {**STRUCTURE, "third": [NODE]}])
def test_both_cells_and_nothing_else_are_expected(structure: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^expected the cells normal and reduction, got "):
        build_cells(structure, (8, 8, 1), 2)
