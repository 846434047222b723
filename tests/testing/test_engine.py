"""The engine of the contract suites: scripted, remembering, interruptible."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
from automl_support import CountingEngine, chain

from trautoml.engine import LocalEngine, SharedTask
from trautoml.jobs import TrainingJob
from trautoml.recording import RecordingEngine
from trautoml.store import Store
from trautoml.testing import FakeEngine, by_merit, tiny_task

TASK = tiny_task()
SHARED = SharedTask(TASK.fingerprint, task=TASK)
RUNS = count()


@dataclass(frozen=True)
class Count:
    """A result that can be told from that of another run."""

    number: int
    seconds: float
    path: tuple[int, ...] = (1, 2)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Count":
        return cls(**json.loads(text))


@dataclass(frozen=True)
class PlainJob:
    key: str

    def run(self) -> Count:
        return Count(next(RUNS), seconds=99.0)


@dataclass(frozen=True)
class TypedJob(PlainJob):
    result_type: ClassVar[type[Count]] = Count
    task: SharedTask = SHARED


def training(channels: int, epochs: float = 1) -> TrainingJob:
    return TrainingJob(SHARED, chain(channels), epochs, device="cpu")


JOBS = [training(channels) for channels in range(8, 16)]


def run(engine: FakeEngine, jobs: list[TrainingJob] = JOBS) -> list[tuple[int, object]]:
    with engine:
        return list(engine.run(jobs))


def test_trainings_are_scored_by_their_key_and_not_run() -> None:
    engine = FakeEngine()
    assert run(engine) == [(i, by_merit(job)) for i, job in enumerate(JOBS)]
    assert engine.executed == [(job, by_merit(job)) for job in JOBS]
    results = [by_merit(training(8, epochs)) for epochs in range(1, 300)]
    assert all(0 <= r.score < 1 and 0.5 <= r.seconds < 1.5 for r in results)
    assert len({r.score for r in results}) == len(results)
    assert [r.epochs for r in results] == list(range(1, 300))
    assert not any(r.diverged for r in results)


def test_shuffled_the_same_results_come_in_an_order_of_the_seed() -> None:
    orders = []
    for seed in (1, 1, 2):
        engine = FakeEngine(shuffle=seed)
        found = run(engine)
        orders.append([index for index, _ in found])
        assert sorted(found) == run(FakeEngine())
        assert [job for job, _ in engine.executed] == [JOBS[i] for i in orders[-1]]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(len(JOBS))) != orders[0]


def test_an_interrupt_comes_when_so_many_are_done_and_more_are_to_do() -> None:
    engine = FakeEngine(interrupt_after=3)
    with pytest.raises(KeyboardInterrupt), engine:
        list(engine.run(JOBS))
    assert len(engine.executed) == len(engine.memory) == 3
    assert len(run(FakeEngine(interrupt_after=8))) == 8
    with pytest.raises(KeyboardInterrupt):
        run(FakeEngine(interrupt_after=0))


@pytest.mark.parametrize("shuffle", [None, 1])
def test_what_is_remembered_comes_first_and_is_not_run(shuffle: int | None) -> None:
    first = FakeEngine()
    run(first, JOBS[5:])
    engine = FakeEngine(lambda job: replace(by_merit(job), score=0), memory=first.memory,
                        shuffle=shuffle)  # fmt: skip
    assert [engine.remembers(job) for job in JOBS] == [False] * 5 + [True] * 3
    found = run(engine)
    assert sorted(index for index, _ in found[:3]) == [5, 6, 7]
    assert all(result == by_merit(JOBS[index]) for index, result in found[:3])
    assert len(engine.executed) == 5
    assert len(first.memory) == 3, "the other's memory is copied"


def test_other_jobs_are_run_once_and_take_a_second() -> None:
    job = PlainJob("counted")
    ((_, first),) = run(FakeEngine(), [job])
    ((_, second),) = run(FakeEngine(), [job])
    assert first == second
    assert first.seconds == 1.0
    ((_, other),) = run(FakeEngine(), [PlainJob("another")])
    assert other.number == first.number + 1
    ((_, real),) = run(FakeEngine(None), [job])
    assert (real.number, real.seconds) == (other.number + 1, 99.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def test_it_remembers_what_a_store_would(store: Store) -> None:
    jobs = [training(8), PlainJob("plain"), TypedJob("typed")]
    fake, recording = FakeEngine(), RecordingEngine(CountingEngine(store.folder), store)
    results = run(fake, jobs)
    list(recording.run(jobs))
    assert [fake.remembers(job) for job in jobs] == [recording.remembers(job) for job in jobs]
    assert [fake.remembers(job) for job in jobs] == [True, False, True]
    # What is not plain JSON comes back as JSON has it.
    again = dict(run(FakeEngine(memory=fake.memory), jobs))
    assert again[2] == replace(results[2][1], path=[1, 2])


def test_without_a_script_trainings_are_run() -> None:
    ((_, found),) = run(FakeEngine(None), [training(8)])
    with LocalEngine(device="cpu") as engine:
        ((_, expected),) = engine.run([training(8)])
    assert replace(found, seconds=0) == replace(expected, seconds=0)


# --- the task ---------------------------------------------------------------------------------


def test_the_tiny_task_is_a_function_of_its_seed() -> None:
    assert tiny_task(3) == tiny_task(3)
    assert len({tiny_task(seed).fingerprint for seed in range(5)}) == 5
    assert tiny_task().image_shape == (8, 8, 1)
    assert [len(tiny_task().train_images), len(tiny_task().val_images)] == [60, 30]


def test_the_tiny_task_is_learnt_in_a_few_epochs() -> None:
    ((_, result),) = run(FakeEngine(None), [training(8, epochs=8)])
    assert result.score > 0.9
    assert TASK.chance == pytest.approx(1 / 3)
