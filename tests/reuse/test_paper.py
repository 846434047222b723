import numpy as np
import pytest
from automl_support import chain

from trautoml.grouping import Decision
from trautoml.reuse import PaperPolicy

TRIALS = np.full((4, 2), 0.5)
SPECS = {0: chain(8), 1: chain(16)}


def decision(kind: str, group: int) -> Decision:
    return Decision(kind, group, 0.9, np.log([0.5, 0.4]))


@pytest.mark.parametrize("group", [0, 1])
def test_a_task_that_joined_reuses_the_groups_spec(group: int) -> None:
    assert PaperPolicy().choose(SPECS, TRIALS, decision("joined", group)) == SPECS[group]


@pytest.mark.parametrize("kind", ["opened", "split"])
def test_any_other_task_is_searched(kind: str) -> None:
    assert PaperPolicy().choose(SPECS, TRIALS, decision(kind, 2)) is None
    assert PaperPolicy().choose({}, TRIALS, decision("opened", 0)) is None
