import math
from collections.abc import Sequence

import numpy as np
import pytest
from automl_support import chain

from trautoml.explain import explain
from trautoml.grouping import Decision
from trautoml.store import LogEntry


def log_of(*members: tuple[str, int]) -> list[LogEntry]:
    """Tasks by name and group."""
    return [
        LogEntry(
            position=position,
            fingerprint=str(position),
            name=name,
            n_train=60,
            image_shape=(8, 8, 1),
            class_names=("a", "b"),
            trials=np.full((4, 2), 0.5),
            decision=Decision("joined", group, 1.0, np.zeros(0)),
            spec=chain(),
            searched=False,
            score=0.9,
            test_score=0.9,
            seconds={"probes": 1.0, "search": 0.0, "training": 1.0},
            search_estimate=10.0,
            wall_seconds=1.0,
        )
        for position, (name, group) in enumerate(members)
    ]


LOG = log_of(("digits", 0), ("faces", 1), ("digits@0.5", 0))


def joined(p_value: float | None = 0.41, posterior: float = 0.95) -> Decision:
    return Decision("joined", 0, posterior, np.log([0.95, 0.01]), 1.0, p_value, 0)


def opened(log_posterior: Sequence[float]) -> Decision:
    return Decision("opened", 2, 0.99, np.array(log_posterior))


def test_the_first_task() -> None:
    decision = Decision("opened", 0, 1.0, np.zeros(0))
    assert explain(decision, [], "digits") == "digits is the first task: it opens group 0"


def test_a_task_that_joined() -> None:
    assert explain(joined(), LOG, "new") == (
        "new is of the same kind as digits, digits@0.5: it joins group 0 (probability 0.950, "
        "p = 0.41)"
    )


def test_a_task_that_joined_without_a_test() -> None:
    assert explain(joined(None), LOG, "new").endswith("joins group 0 (probability 0.950)")


def test_a_task_that_was_split_off() -> None:
    decision = Decision("split", 2, 0.875, np.log([0.1, 0.875]), 40.0, 0.00012345, 1)
    assert explain(decision, LOG, "new") == (
        "new looks like faces (group 1), but the test finds their scores too different: it opens "
        "group 2 (probability before the test 0.875, p = 0.00012)"
    )


def test_a_task_of_a_new_kind_names_the_nearest() -> None:
    assert explain(opened([math.log(0.002), math.log(0.008)]), LOG, "new") == (
        "new is of a new kind: it opens group 2 (nearest: faces, probability 0.008)"
    )


@pytest.mark.parametrize("value", [-math.inf, -1e300, -800.0, math.log(0.0009)])
def test_next_to_no_probability(value: float) -> None:
    assert explain(opened([value, -math.inf]), LOG, "new").endswith(
        "(nearest: digits, digits@0.5, probability below 0.001)"
    )


@pytest.mark.parametrize(
    ("posterior", "words"),
    [(1.0, "above 0.999"), (0.9991, "above 0.999"), (0.999, "0.999"), (0.001, "0.001")],
)
def test_a_probability_is_never_rounded_to_certainty(posterior: float, words: str) -> None:
    assert f"(probability {words}, p" in explain(joined(posterior=posterior), LOG, "new")


@pytest.mark.parametrize(("p_value", "words"), [(1e-310, "1e-310"), (0.0, "0"), (1.0, "1")])
def test_p_values_of_any_size(p_value: float, words: str) -> None:
    assert explain(joined(p_value), LOG, "new").endswith(f"p = {words})")


def test_many_members_are_counted() -> None:
    log = log_of(*((f"task {i}", 0) for i in range(5)))
    assert "the same kind as task 0, task 1 and 3 more: it" in explain(joined(), log, "new")
