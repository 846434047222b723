"""Rounds of work under a budget: what runs, in which order, until when, and what is counted."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from automl_support import chain, stripes
from hypothesis import given
from hypothesis import strategies as st

from trautoml.errors import SearchError
from trautoml.jobs import Ancestor, TrainingJob, TrainingResult, checkpoint_folder
from trautoml.search import SearchBudget, SearchProgress, TrialRecord
from trautoml.search._rounds import Rounds, training_record, trial_number
from trautoml.testing import FakeEngine, by_merit

TASK = stripes()
SPECS = [chain(channels) for channels in range(1, 13)]
NUMBER = {spec: number for number, spec in enumerate(SPECS)}


def ten_seconds(job: TrainingJob) -> TrainingResult:
    return replace(by_merit(job), seconds=10.0)


def make(
    engine: FakeEngine | None = None,
    told: list[SearchProgress] | None = None,
    allowed: int = 12,
    **budget: Any,
) -> Rounds:
    values = {"trials": 12, "epochs": 3} | budget
    return Rounds(
        TASK,
        SearchBudget(**values),
        engine or FakeEngine(ten_seconds),
        None if told is None else told.append,
        allowed=allowed,
    )


def train(rounds: Rounds, numbers: Sequence[int], **options: Any) -> dict[int, TrialRecord]:
    """Train some of the specs for one epoch, as one round."""
    jobs = [rounds.training(SPECS[number], epochs=1, seed=0) for number in numbers]

    def record(index: int, result: TrainingResult, seconds: float) -> TrialRecord:
        return training_record(numbers[index], SPECS[numbers[index]], result, seconds)

    with rounds.engine:
        return dict(rounds.run(jobs, record, epoch=1, **options))


def ran(engine: FakeEngine) -> list[int]:
    return [NUMBER[job.spec] for job, _ in engine.executed]


# --- a round ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [None, 1, 2])
def test_records_are_by_index_whatever_finishes_first(shuffle: int | None) -> None:
    engine = FakeEngine(shuffle=shuffle)
    rounds = make(engine)
    records = train(rounds, [3, 1, 4, 0])
    assert list(records) == [0, 1, 2, 3]
    assert [r.trial for r in records.values()] == [3, 1, 4, 0]
    assert list(records.values()) == rounds.history
    results = {NUMBER[job.spec]: result for job, result in engine.executed}
    for record in rounds.history:
        assert record.score == results[record.trial].score
        assert record.seconds == results[record.trial].seconds
    train(rounds, [7, 5])
    assert [r.trial for r in rounds.history] == [3, 1, 4, 0, 7, 5]
    assert rounds.seconds == math.fsum(r.seconds for r in rounds.history)


def test_the_order_says_which_job_starts_first() -> None:
    engine = FakeEngine()
    records = train(make(engine), [0, 1, 2, 3], order=[2, 0, 3, 1])
    assert ran(engine) == [2, 0, 3, 1]
    assert [records[i].trial for i in records] == [0, 1, 2, 3]


def test_a_round_without_jobs_is_none() -> None:
    told: list[SearchProgress] = []
    rounds = make(told=told)
    assert train(rounds, []) == {}
    train(rounds, [0])
    assert [p.round for p in told] == [1]


def test_twins_run_once_and_the_second_costs_nothing() -> None:
    engine, told = FakeEngine(ten_seconds), []
    rounds = make(engine, told)
    records = train(rounds, [0, 1, 0, 1, 1])
    assert ran(engine) == [0, 1]
    assert [r.seconds for r in records.values()] == [10, 10, 0, 0, 0]
    assert [r.trial for r in records.values()] == [0, 1, 0, 1, 1]
    assert [p.done for p in told] == [2, 5], "told after each job, with its twins"
    assert {p.trainings for p in told} == {5}
    records = train(rounds, [2, 1, 2])
    assert ran(engine) == [0, 1, 2]
    assert [r.seconds for r in records.values()] == [10, 0, 0]
    assert records[1].score == rounds.history[1].score
    train(rounds, [0, 1])
    assert ran(engine) == [0, 1, 2]
    assert rounds.seconds == 30
    assert [p.round for p in told] == [1, 1, 2, 2, 3, 3]


def test_progress_says_where_the_search_stands() -> None:
    told: list[SearchProgress] = []
    rounds = make(FakeEngine(ten_seconds, n_workers=3), told, allowed=9, seconds=100)
    rounds.started = 4
    train(rounds, [0, 1])
    scores = {record.score for record in rounds.history}
    assert told[-1] == SearchProgress(
        started=4,
        allowed=9,
        round=1,
        done=2,
        trainings=2,
        epoch=1,
        epochs=3,
        best=max(rounds.history, key=lambda r: r.score),
        seconds=20.0,
        allowed_seconds=300,
    )
    assert [p.seconds for p in told] == [10.0, 20.0]
    assert told[-1].best.score == max(scores)


def test_the_best_that_is_told_was_trained_alone_if_any_was() -> None:
    told: list[SearchProgress] = []
    rounds = make(told=told)
    jobs = [rounds.training(spec, epochs=1, seed=0) for spec in SPECS[:3]]
    kinds = [(0.9, True, True), (0.8, False, False), (0.1, False, True)]

    def record(index: int, result: TrainingResult, seconds: float) -> TrialRecord:
        score, diverged, alone = kinds[index]
        return TrialRecord(index, SPECS[index], 1, score, seconds, diverged, alone)

    with rounds.engine:
        rounds.run(jobs, record, epoch=1)
    assert [p.best.trial for p in told] == [0, 1, 2]


# --- memory and time --------------------------------------------------------------------------


def memory_of(numbers: Sequence[int]) -> dict[str, Any]:
    engine = FakeEngine(ten_seconds)
    train(make(engine), numbers)
    return engine.memory


def test_what_is_remembered_is_taken_first_and_counted() -> None:
    engine, told = FakeEngine(ten_seconds, memory=memory_of([2, 3])), []
    rounds = make(engine, told)
    records = train(rounds, [0, 1, 2, 3])
    assert ran(engine) == [0, 1]
    assert [r.trial for r in records.values()] == [0, 1, 2, 3]
    assert {r.seconds for r in records.values()} == {10}
    assert {told[0].best.trial, told[1].best.trial} <= {2, 3}


def test_what_is_remembered_is_taken_when_the_time_is_up_and_nothing_else() -> None:
    engine = FakeEngine(ten_seconds, memory=memory_of([0, 2, 3, 5]))
    rounds = make(engine, seconds=15)
    assert list(train(rounds, [0, 1, 2, 3])) == [0, 2, 3]
    assert rounds.seconds == 30
    assert list(train(rounds, [4, 5])) == [1]
    assert ran(engine) == []
    assert train(rounds, [6]) == {}


@pytest.mark.parametrize(("n_workers", "n_done"), [(1, 3), (2, 5), (3, 8)])
def test_a_round_ends_when_the_time_is_up(n_workers: int, n_done: int) -> None:
    engine = FakeEngine(ten_seconds, n_workers=n_workers)
    rounds = make(engine, seconds=25)
    assert rounds.allowed_seconds == 25 * n_workers
    assert list(train(rounds, range(12))) == list(range(n_done))
    assert len(engine.executed) == n_done
    told = rounds.history.copy()
    assert train(rounds, [11]) == {}
    assert rounds.history == told


def test_one_training_is_done_however_little_time_there_is() -> None:
    engine = FakeEngine(ten_seconds)
    assert list(train(make(engine, seconds=1e-9), range(4))) == [0]
    assert ran(engine) == [0]


def test_a_share_of_the_time() -> None:
    engine = FakeEngine(ten_seconds)
    rounds = make(engine, seconds=100)
    assert len(train(rounds, range(6), share=0.35)) == 4
    assert train(rounds, [6, 7], share=0.35) == {}
    assert train(rounds, [6, 7], share=0.4) == {}
    assert len(train(rounds, [6, 7], share=0.45)) == 1
    assert len(train(rounds, range(6, 12))) == 6
    assert rounds.seconds == 100
    assert len(engine.executed) == 10


def test_known_twins_need_no_time() -> None:
    rounds = make(seconds=5)
    train(rounds, [0])
    assert train(rounds, [0, 1]) == {}
    assert list(train(rounds, [0, 0])) == [0, 1]


def test_without_a_limit_there_is_none() -> None:
    rounds = make()
    assert rounds.allowed_seconds is None
    assert len(train(rounds, range(12))) == 12


def test_how_much_is_spent_is_the_larger_share_and_at_most_all() -> None:
    rounds = make(allowed=8, seconds=100)
    assert rounds.spent == 0
    rounds.started = 2
    assert rounds.spent == 0.25
    train(rounds, range(5))
    assert rounds.spent == 0.5
    rounds.started = 6
    assert rounds.spent == 0.75
    train(rounds, range(5, 12), share=2.0)
    assert rounds.seconds == 120
    assert rounds.spent == 1
    free = make(allowed=8)
    train(free, range(12))
    assert free.spent == 0


@given(
    st.lists(st.lists(st.integers(0, 11), max_size=6), max_size=5),
    st.floats(0.1, 12),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_repeated_it_does_the_same_and_runs_nothing(
    plan: list[list[int]], seconds: float, n_workers: int, shuffle: int
) -> None:
    def go(engine: FakeEngine) -> Rounds:
        with engine:
            rounds = make(engine, seconds=seconds)
            for numbers in plan:
                train(rounds, numbers)
        return rounds

    engine = FakeEngine(n_workers=n_workers, shuffle=shuffle)
    first = go(engine)
    assert len(set(ran(engine))) == len(engine.executed), "nothing runs twice"
    assert first.seconds == math.fsum(result.seconds for _, result in engine.executed)
    again = FakeEngine(n_workers=n_workers, shuffle=shuffle + 1, memory=engine.memory)
    second = go(again)
    assert again.executed == []
    assert [r.trial for r in second.history] == [r.trial for r in first.history]
    assert second.seconds == first.seconds


# --- jobs -------------------------------------------------------------------------------------


def test_a_training_is_a_piece_of_a_final_one() -> None:
    rounds = make()
    with rounds.engine as engine:
        job = rounds.training(SPECS[0], epochs=1, seed=5)
        assert (job.spec, job.epochs, job.schedule_epochs, job.seed) == (SPECS[0], 1, 3, 5)
        assert (job.device, job.ancestors, job.test) == ("cpu", (), False)
        assert job.checkpoint is not None
        assert job.checkpoint.parent == checkpoint_folder(engine.workspace, TASK.fingerprint)
        whole = rounds.training(SPECS[0], epochs=3, seed=5)
        assert whole.checkpoint == job.checkpoint
        assert whole.key != job.key
        line = (Ancestor(SPECS[0], 3),)
        child = rounds.training(SPECS[1], epochs=1, seed=5, ancestors=line)
        assert (child.ancestors, child.schedule_epochs) == (line, 1)


def test_train_is_a_round_of_all_epochs() -> None:
    engine = FakeEngine()
    rounds = make(engine, told := [])
    with engine:
        records = rounds.train([(-1, SPECS[0]), (0, SPECS[1])], seed=2)
    assert [(r.trial, r.spec, r.epochs) for r in records.values()] == [
        (-1, SPECS[0], 3), (0, SPECS[1], 3),
    ]  # fmt: skip
    assert [(job.epochs, job.seed) for job, _ in engine.executed] == [(3, 2), (3, 2)]
    assert [p.epoch for p in told] == [3, 3]


def test_numbers_of_warm_starts_and_of_others() -> None:
    assert [trial_number(i, 3) for i in range(6)] == [-1, -2, -3, 0, 1, 2]
    assert [trial_number(i, 0) for i in range(3)] == [0, 1, 2]


# --- the result -------------------------------------------------------------------------------


def entry(trial: int, score: float, **options: Any) -> TrialRecord:
    return TrialRecord(trial, SPECS[trial], 1, score, 1.5, **options)


def test_the_best_that_was_trained_alone_and_never_diverged_wins() -> None:
    rounds = make()
    rounds.history = [
        entry(0, 0.99, alone=False),
        entry(1, 0.95),
        entry(2, 0.7),
        entry(3, 0.9, diverged=True),
        entry(1, 0.3, diverged=True),
        entry(4, 0.8),
        entry(5, 0.8),
    ]
    with rounds.engine:
        result = rounds.result()
    assert (result.spec, result.score, result.seconds) == (SPECS[4], 0.8, 0.0)
    assert result.history == tuple(rounds.history)


@pytest.mark.parametrize(
    "history",
    [[entry(0, 0.5, diverged=True), entry(1, 0.9), entry(1, 0.4, diverged=True)],
     [entry(0, 0.5, diverged=True), entry(1, 0.4, diverged=True), entry(2, 0.9, alone=False)]],
)  # fmt: skip
def test_without_one_the_error_carries_the_history(history: list[TrialRecord]) -> None:
    rounds = make()
    rounds.history = history
    says = "all 2 candidates of the search on stripes"
    with rounds.engine, pytest.raises(SearchError, match=says) as caught:
        rounds.result()
    assert caught.value.history == history
