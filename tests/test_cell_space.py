import json
from collections import Counter
from itertools import combinations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trautoml.errors import InputError
from trautoml.networks.cells import check_cells
from trautoml.networks.operations import OPERATIONS
from trautoml.spaces import CellSpace, ChainSpace, RandomChoice
from trautoml.spaces.cells import CELL_OPERATIONS
from trautoml.spec import ModelSpec

seeds = st.integers(0, 2**32 - 1)
n_nodes = st.integers(1, 5)


def test_the_space_offers_all_operations_that_a_cell_may_have() -> None:
    assert CELL_OPERATIONS == OPERATIONS


@given(seeds, n_nodes)
def test_every_draw_is_a_valid_pair_of_cells(seed: int, nodes: int) -> None:
    spec = CellSpace(nodes).sample(np.random.default_rng(seed))
    check_cells(spec.structure)
    assert spec.architecture == "cells"
    assert {len(cell) for cell in spec.structure.values()} == {nodes}
    assert 2e-2 <= spec.hyper.learning_rate <= 0.5
    assert spec.hyper.batch_size in {16, 32, 64, 128}
    assert ModelSpec.from_json(spec.to_json()) == spec


@given(seeds, n_nodes)
def test_the_choices_amount_to_the_spec_and_back(seed: int, nodes: int) -> None:
    space = CellSpace(nodes)
    choice = RandomChoice(np.random.default_rng(seed))
    spec = space.define(choice)
    assert len(choice.params) == 2 * 3 * nodes + 5
    assert space.params_of(spec) == choice.params
    assert space.define(optuna.trial.FixedTrial(json.loads(json.dumps(choice.params)))) == spec
    assert CellSpace(nodes + 1).params_of(spec) is None


def test_specs_of_other_spaces_have_no_choices() -> None:
    spec = CellSpace().sample(np.random.default_rng(0))
    assert CellSpace().params_of(ChainSpace().sample(np.random.default_rng(0))) is None
    assert (
        CellSpace().params_of(ModelSpec("cells", spec.structure | {"normal": []}, spec.hyper))
        is None
    )


def test_operations_and_pairs_of_inputs_are_uniform() -> None:
    rng = np.random.default_rng(0)
    cells = [cell for _ in range(2000) for cell in CellSpace(3).sample(rng).structure.values()]
    for node in range(3):
        pairs = Counter(tuple(source for _, source in cell[node]) for cell in cells)
        assert set(pairs) == set(combinations(range(2 + node), 2))
        assert len(pairs) == 1 or stats.chisquare(list(pairs.values())).pvalue > 1e-3
        for term in range(2):
            operations = Counter(cell[node][term][0] for cell in cells)
            assert set(operations) == set(OPERATIONS)
            assert stats.chisquare(list(operations.values())).pvalue > 1e-3


def test_a_cell_has_at_least_one_node() -> None:
    with pytest.raises(InputError, match="at least 1 node, got 0"):
        CellSpace(0)
