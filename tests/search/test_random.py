"""Random search, and with it how all searchers go that propose whole rounds."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from automl_support import ScriptedEngine, chain, scored, stripes
from hypothesis import given, settings
from hypothesis import strategies as st

from trautoml.engine import LocalEngine
from trautoml.errors import InputError
from trautoml.jobs import TrainingResult
from trautoml.search import HyperbandSearcher, SearchBudget, SearchProgress, SearchResult
from trautoml.search._proposing import Proposal, Proposer, ProposingSearcher
from trautoml.search.random_search import RandomSearcher
from trautoml.spaces import CellSpace, ChainSpace, RandomChoice
from trautoml.spec import ModelSpec
from trautoml.task import Task


def quality(spec: ModelSpec) -> float:
    """A fixed merit of every spec in (0, 1), as good as random."""
    return int(spec.digest, 16) / 16**16


def by_quality(spec: ModelSpec, epochs: float) -> TrainingResult:
    return scored(quality(spec), epochs)


def search(
    searcher: ProposingSearcher,
    trials: int = 10,
    engine: ScriptedEngine | None = None,
    seconds: float | None = None,
    **options: Any,
) -> SearchResult:
    return searcher.search(
        stripes(),
        budget=SearchBudget(trials, 2, seconds),
        engine=engine or ScriptedEngine(by_quality),
        **options,
    )


# --- random search ----------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
def test_candidate_i_is_a_function_of_seed_and_i(seed: int, slots: int, cells: bool) -> None:
    space = CellSpace() if cells else ChainSpace()
    history = search(RandomSearcher(space, seed=seed, slots=slots)).history
    assert [record.trial for record in history] == list(range(10))
    for number, record in enumerate(history):
        rng = np.random.default_rng([seed, 0, number])
        assert record.spec == space.define(RandomChoice(rng))


def test_they_are_hyperbands() -> None:
    budget, task = SearchBudget(10, 1), stripes(seed=1)
    other = HyperbandSearcher(seed=3).search(task, budget=budget, engine=ScriptedEngine(by_quality))
    history = search(RandomSearcher(seed=3, slots=3)).history
    assert [r.spec for r in history] == [r.spec for r in other.history]


def test_each_candidate_is_trained_once_for_all_epochs_and_the_best_wins() -> None:
    engine = ScriptedEngine(by_quality)
    result = search(RandomSearcher(seed=1), engine=engine)
    assert [job.spec for job in engine.jobs] == [record.spec for record in result.history]
    assert {job.epochs for job in engine.jobs} == {2}
    assert {job.seed for job in engine.jobs} == {1}
    assert result.spec == max((r.spec for r in result.history), key=quality)
    assert result.score == quality(result.spec)


def test_at_least_one_slot_is_needed() -> None:
    with pytest.raises(InputError, match="expected slots >= 1, got 0"):
        RandomSearcher(slots=0)


def test_it_learns_a_task() -> None:
    with LocalEngine(device="cpu") as engine:
        result = RandomSearcher(seed=0).search(stripes(), budget=SearchBudget(8, 4), engine=engine)
    assert result.score > 0.8


# --- rounds of proposals ----------------------------------------------------------------------


class Spy(Proposer):
    """Proposes chains of 1, 2, ... channels and notes what happens; adopts even widths only."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.widths = itertools.count(1)

    def propose(self, n: int, spent: float) -> list[Proposal]:
        self.calls.append(("propose", n, spent))
        specs = [chain(next(self.widths)) for _ in range(n)]
        return [Proposal(spec, memo=f"memo of {spec.digest}") for spec in specs]

    def observe(self, scored: Sequence[tuple[Proposal, float]]) -> None:
        for proposal, score in scored:
            assert proposal.memo == f"memo of {proposal.spec.digest}"
            assert score == quality(proposal.spec)
        self.calls.append(("observe", [width(p.spec) for p, _ in scored]))

    def adopt(self, spec: ModelSpec) -> Proposal:
        self.calls.append(("adopt", width(spec)))
        return Proposal(spec, f"memo of {spec.digest}" if width(spec) % 2 == 0 else None)

    def close(self) -> None:
        self.calls.append("close")


class SpySearcher(ProposingSearcher):
    def proposer(self, task: Task) -> Proposer:
        assert task == stripes()
        self.spy = Spy()
        return self.spy


def width(spec: ModelSpec) -> int:
    return int(spec.structure["layers"][0]["channels"])


def test_a_round_is_proposed_at_once_and_observed_at_once() -> None:
    searcher = SpySearcher(slots=4)
    search(searcher, 10)
    assert searcher.spy.calls == [
        ("propose", 4, 0.0),
        ("observe", [1, 2, 3, 4]),
        ("propose", 4, 0.4),
        ("observe", [5, 6, 7, 8]),
        ("propose", 2, 0.8),
        ("observe", [9, 10]),
        "close",
    ]


def test_rounds_are_told() -> None:
    told: list[SearchProgress] = []
    search(SpySearcher(slots=4), 10, callback=told.append)
    assert [(p.round, p.done, p.trainings, p.started) for p in told] == [
        *((1, done, 4, 4) for done in range(1, 5)),
        *((2, done, 4, 8) for done in range(1, 5)),
        *((3, done, 2, 10) for done in range(1, 3)),
    ]


@pytest.mark.parametrize("shuffle", [None, 1, 2])
def test_observed_in_order_of_proposal(shuffle: int | None) -> None:
    searcher = SpySearcher(slots=5)
    search(searcher, 5, ScriptedEngine(by_quality, n_workers=3, shuffle=shuffle))
    assert searcher.spy.calls[1] == ("observe", [1, 2, 3, 4, 5])


def test_warm_starts_come_first_and_those_with_a_memo_are_observed() -> None:
    searcher = SpySearcher(slots=4)
    warm = [chain(channels) for channels in (20, 21, 22, 23, 24)]
    result = search(searcher, 8, warm_start=warm)
    assert searcher.spy.calls == [
        *(("adopt", channels) for channels in (20, 21, 22, 23, 24)),
        ("propose", 0, 0.0),
        ("observe", [20, 22]),
        ("propose", 3, 0.5),
        ("observe", [24, 1, 2, 3]),
        "close",
    ]
    assert [r.trial for r in result.history] == [-1, -2, -3, -4, -5, 0, 1, 2]


def test_more_warm_starts_than_trials_leave_nothing_to_propose() -> None:
    searcher = SpySearcher(slots=4)
    search(searcher, 2, warm_start=[chain(channels) for channels in (20, 22, 24, 26, 28)])
    assert [call for call in searcher.spy.calls if call[0] == "propose"] == [
        ("propose", 0, 0.0),
        ("propose", 0, 0.8),
    ]


def test_a_round_that_time_cuts_short_is_not_observed() -> None:
    searcher = SpySearcher(slots=4)
    result = search(searcher, 100, seconds=6)
    assert [width(r.spec) for r in result.history] == [1, 2, 3, 4, 5, 6]
    assert searcher.spy.calls == [
        ("propose", 4, 0.0),
        ("observe", [1, 2, 3, 4]),
        ("propose", 4, 4 / 6),
        "close",
    ]


def test_the_proposer_is_closed_after_an_error() -> None:
    searcher = SpySearcher()

    def fail(_: object, __: float) -> TrainingResult:
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        search(searcher, engine=ScriptedEngine(fail))
    assert searcher.spy.calls[-1] == "close"


class Repeating(Spy):
    """Has only five specs to propose."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = itertools.chain(range(1, 6), itertools.repeat(5))


class RepeatingSearcher(ProposingSearcher):
    def proposer(self, task: Task) -> Proposer:
        self.spy = Repeating()
        return self.spy


def test_a_search_is_over_when_nothing_new_is_proposed_any_more() -> None:
    searcher = RepeatingSearcher(slots=4)
    engine = ScriptedEngine(by_quality)
    result = search(searcher, 10**6, engine, seconds=1e6)
    assert len(engine.jobs) == len(set(engine.jobs)) == 5
    proposed = [call for call in searcher.spy.calls if call[0] == "propose"]
    assert len(proposed) == 2 + 10
    assert searcher.spy.calls[-1] == "close"
    assert result.score == max(quality(chain(w)) for w in range(1, 6))
    assert result.seconds == 5.0


@pytest.mark.parametrize(("n_workers", "expected"), [(1, 8), (4, 32), (16, 32)])
def test_only_workers_that_a_round_keeps_busy_have_time_to_spend(
    n_workers: int, expected: int
) -> None:
    # Each training takes a second; the limit is 8 seconds of the engine's time.
    engine = ScriptedEngine(by_quality, n_workers=n_workers)
    search(SpySearcher(slots=4), 10**6, engine, seconds=8.0)
    assert len(engine.jobs) == expected
