from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from automl_support import CountingEngine, chain, stripes

from trautoml.engine import Engine, LocalEngine
from trautoml.errors import EngineError
from trautoml.jobs import TrainingJob
from trautoml.recording import RecordingEngine
from trautoml.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def jobs_on(engine: Engine, n: int = 3, **options: Any) -> list[TrainingJob]:
    shared = engine.share(stripes())
    return [TrainingJob(shared, chain(), 1, seed=i, device="cpu", **options) for i in range(n)]


def test_a_finished_training_is_not_run_again(store: Store) -> None:
    inner = CountingEngine(store.folder)
    engine = RecordingEngine(inner, store)
    jobs = jobs_on(engine)
    first = dict(engine.run(jobs[:2]))
    second = dict(engine.run(jobs))
    assert inner.executed == [job.key for job in jobs]
    assert {index: second[index] for index in first} == first
    third = list(RecordingEngine(LocalEngine(store.folder), store).run(jobs))
    assert dict(third) == second
    assert [index for index, _ in third] == [0, 1, 2]


def test_what_is_remembered_comes_first(store: Store) -> None:
    engine = RecordingEngine(CountingEngine(store.folder), store)
    jobs = jobs_on(engine)
    list(engine.run(jobs[2:]))
    assert [engine.remembers(job) for job in jobs] == [False, False, True]
    assert [index for index, _ in engine.run(jobs)] == [2, 0, 1]
    assert all(engine.remembers(job) for job in jobs)


def test_results_keep_their_index_when_some_are_known(store: Store) -> None:
    engine = RecordingEngine(CountingEngine(store.folder), store)
    jobs = jobs_on(engine)
    list(engine.run([jobs[1]]))
    found = dict(engine.run(jobs))
    assert sorted(found) == [0, 1, 2]
    for index, job in enumerate(jobs):
        assert store.training(job.key) == found[index]


def test_a_result_is_kept_before_the_caller_sees_it(store: Store) -> None:
    engine = RecordingEngine(CountingEngine(store.folder), store)
    jobs = jobs_on(engine)
    for seen, (index, result) in enumerate(engine.run(jobs), 1):
        assert store.n_trainings() == seen
        assert store.training(jobs[index].key) == result


def test_what_finished_before_a_failure_is_kept(store: Store) -> None:
    class Failing(LocalEngine):
        def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            yield 0, jobs[0].run()
            raise RuntimeError("the power went")

    engine = RecordingEngine(Failing(store.folder), store)
    jobs = jobs_on(engine)
    with pytest.raises(RuntimeError, match="the power went"):
        list(engine.run(jobs))
    assert store.n_trainings() == 1
    assert store.training(jobs[0].key) is not None


def test_a_final_training_counts_only_with_its_weights(store: Store) -> None:
    inner = CountingEngine(store.folder)
    engine = RecordingEngine(inner, store)
    checkpoint = store.folder / "weights.safetensors"
    (job,) = jobs_on(engine, 1, test=True, checkpoint=checkpoint)
    ((_, first),) = engine.run([job])
    ((_, second),) = engine.run([job])
    assert len(inner.executed) == 1
    assert first == second
    assert engine.remembers(job)
    checkpoint.unlink()
    assert not engine.remembers(job)
    ((_, third),) = engine.run([job])
    assert len(inner.executed) == 2
    assert checkpoint.is_file()
    assert (third.score, third.test_score) == (first.score, first.test_score)


def test_an_engine_that_loses_a_job_is_an_error(store: Store) -> None:
    class Forgetful(LocalEngine):
        def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            yield 1, jobs[1].run()

    engine = RecordingEngine(Forgetful(store.folder), store)
    with pytest.raises(EngineError, match="expected 3 results of Forgetful, got 1"):
        list(engine.run(jobs_on(engine)))
    assert store.n_trainings() == 1


def test_other_jobs_pass_through(store: Store) -> None:
    @dataclass
    class Sum:
        key = "sum"

        def run(self) -> int:
            return 3

    engine = RecordingEngine(LocalEngine(store.folder), store)
    assert list(engine.run([Sum(), Sum()])) == [(0, 3), (1, 3)]
    assert store.n_trainings() == 0


def test_it_stands_for_the_inner_engine(store: Store) -> None:
    inner = LocalEngine(store.folder)
    inner.n_workers = 7
    engine = RecordingEngine(inner, store)
    assert engine.n_workers == 7
    assert engine.workspace == inner.workspace
    assert engine.share(stripes()) == inner.share(stripes())
    engine.close()
    assert store.folder.is_dir()
