import json
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from automl_support import CountingEngine, chain, stripes
from safetensors.torch import load_file

from trautoml.device import one_thread
from trautoml.engine import Engine, LocalEngine, SharedTask
from trautoml.errors import InputError, SearchError
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.networks.cells import check_cells
from trautoml.search import SearchBudget, Searcher, SearchProgress, SearchResult
from trautoml.search._shared_weights import SharedWeights
from trautoml.search._supernet import (
    Child,
    Method,
    SupernetJob,
    SupernetResult,
    SupernetTiming,
    SupernetTimingJob,
)
from trautoml.search.darts import Darts, DartsSearcher
from trautoml.search.enas import Enas, EnasPolicy, EnasSearcher
from trautoml.spaces import CellSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task

TASK = stripes(n=36)
BUDGET = SearchBudget(trials=3, epochs=1)
METHODS = [Darts(), Darts(order=2), Enas()]
methods = pytest.mark.parametrize("method", METHODS, ids=["darts", "darts 2nd order", "enas"])
searchers = pytest.mark.parametrize(
    "searcher",
    [DartsSearcher(nodes=1), EnasSearcher(nodes=1, finalists=2)],
    ids=["darts", "enas"],
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(torch.device("cpu")):
        yield


def job(
    method: Method = METHODS[0], epoch: int = 2, folder: Path | None = None, **options: Any
) -> SupernetJob:
    task = SharedTask(TASK.fingerprint, task=TASK)
    values = {"nodes": 1, "epochs": 3, "device": "cpu", **options}
    return SupernetJob(task, method, epoch=epoch, folder=folder, **values)


def weights_of(job: SupernetJob) -> dict[str, torch.Tensor]:
    """What the checkpoint holds, without statistics that nothing reads."""
    assert job.checkpoint is not None
    state = load_file(job.checkpoint)
    return {k: v for k, v in state.items() if "running" not in k and "tracked" not in k}


def without_seconds(result: SupernetResult) -> SupernetResult:
    return replace(result, seconds=0.0)


def test_a_job_needs_no_folder(tmp_path: Path) -> None:
    assert without_seconds(job().run()) == without_seconds(job(folder=tmp_path).run())


@methods
def test_a_job_that_goes_on_comes_to_the_same(method: Method, tmp_path: Path) -> None:
    whole = job(method, 3, tmp_path / "whole")
    expected = whole.run()
    for epoch in (1, 2, 3):
        piece = job(method, epoch, tmp_path / "pieces")
        result = piece.run()
    assert without_seconds(result) == without_seconds(expected)
    weights, others = weights_of(whole), weights_of(piece)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_checkpoint_saves_the_epochs_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[int] = []
    train = EnasPolicy.train

    def count(self: EnasPolicy, steps: int) -> None:
        trained.append(self._shared.epoch)
        train(self, steps)

    monkeypatch.setattr(EnasPolicy, "train", count)
    for epoch in (1, 3):
        job(Enas(), epoch, tmp_path).run()
    assert trained == [0, 1, 2]
    job(Enas(), 3, tmp_path).run()
    assert trained == [0, 1, 2]


@methods
def test_children_are_valid_and_the_best_comes_first(method: Method) -> None:
    result = job(method, 1).run()
    scores = [child.score for child in result.children]
    assert scores == sorted(scores, reverse=True)
    assert not result.diverged
    for child in result.children:
        check_cells(child.structure)
        assert 0 <= child.score <= 1
    structures = [json.dumps(child.structure) for child in result.children]
    assert len(set(structures)) == len(structures)


def test_a_checkpoint_that_is_ahead_or_damaged_is_not_taken(tmp_path: Path) -> None:
    expected = without_seconds(job(epoch=1).run())
    job(epoch=2, folder=tmp_path).run()
    assert without_seconds(job(epoch=1, folder=tmp_path).run()) == expected
    file = job(folder=tmp_path).checkpoint
    assert file is not None
    file.write_bytes(file.read_bytes()[:100])
    assert without_seconds(job(epoch=1, folder=tmp_path).run()) == expected
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_job_that_was_killed_after_its_checkpoint_counts_the_time_before(tmp_path: Path) -> None:
    first = job(folder=tmp_path).run()
    again = job(folder=tmp_path).run()
    assert again.seconds > 0.9 * first.seconds
    assert without_seconds(again) == without_seconds(first)


def test_the_key_names_all_that_determines_the_result(tmp_path: Path) -> None:
    other_task = stripes(seed=1)
    keys = {
        job().key,
        job(epoch=1).key,
        job(epochs=4).key,
        job(nodes=2).key,
        job(seed=1).key,
        *(job(method).key for method in METHODS[1:]),
        job(Darts(learning_rate=0.1)).key,
        replace(job(), task=SharedTask(other_task.fingerprint, task=other_task)).key,
    }
    assert len(keys) == 9
    assert job(folder=tmp_path, device="cuda").key == job().key
    pieces = {job(epoch=epoch, folder=tmp_path).checkpoint for epoch in (1, 2, 3)}
    assert len(pieces) == 1
    assert job(Darts(order=2), folder=tmp_path).checkpoint not in pieces


@methods
def test_jobs_and_results_survive_the_way_between_processes(method: Method) -> None:
    there = pickle.loads(pickle.dumps(job(method, 1)))  # noqa: S301
    assert there.key == job(method, 1).key
    result = there.run()
    assert SupernetJob.result_type.from_json(result.to_json()) == result
    assert without_seconds(result) == without_seconds(job(method, 1).run())


@methods
def test_a_learning_rate_that_is_too_large_diverges(method: Method, tmp_path: Path) -> None:
    result = job(replace(method, learning_rate=1e30), folder=tmp_path).run()
    assert result.diverged
    assert {child.score for child in result.children} == {TASK.chance}
    assert job(replace(method, learning_rate=1e30), 3, folder=tmp_path).run().diverged


def test_a_device_without_memory_counts_as_diverged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: EnasPolicy, steps: int) -> None:
        raise torch.cuda.OutOfMemoryError("no room\nfor this")

    monkeypatch.setattr(EnasPolicy, "train", fail)
    result = job(Enas(), folder=tmp_path).run()
    assert result.diverged
    assert result.children
    assert not list(tmp_path.iterdir())


@methods
def test_the_global_random_state_plays_no_part(method: Method) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    result = job(method, 1).run()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert without_seconds(job(method, 1).run()) == without_seconds(result)


def shared_weights(task: Task = TASK) -> SharedWeights:
    return SharedWeights(
        task,
        1,
        epochs=2,
        learning_rate=0.1,
        weight_decay=1e-4,
        seed=0,
        device=torch.device("cpu"),
    )


def test_images_are_normalised_as_for_a_classifier() -> None:
    shared = shared_weights()
    images = torch.cat([images for images, _ in shared.batches("train", 1000)])
    assert len(images) == TASK.n_train
    assert float(images.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(images.std(correction=0)) == pytest.approx(1.0, abs=1e-5)


def test_every_turn_goes_through_all_images_in_another_order() -> None:
    shared = shared_weights()
    turns = [
        torch.cat([shared.batch("train", 2 * turn + i)[0] for i in range(2)]).flatten(1)
        for turn in (0, 1, 0)
    ]
    assert torch.equal(turns[0], turns[2])
    assert not torch.equal(turns[0], turns[1])
    assert {tuple(row) for row in turns[0].tolist()} <= {
        tuple(row)
        for images, _ in shared.batches("train", 1000)
        for row in images.flatten(1).tolist()
    }
    assert len({tuple(row) for row in turns[0].tolist()}) == 32


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    shared = shared_weights()
    assert shared.steps == 4
    rates = []
    structure = CellSpace(1).sample(np.random.default_rng(0)).structure
    for step in range(4):
        rates.append(shared.learning_rate)
        shared.update(shared.loss(structure, shared.batch("train", step)))
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * s / 4)) for s in range(4)])
    assert shared.epoch == 2


def search(
    searcher: Searcher, engine: Engine, budget: SearchBudget = BUDGET, **options: Any
) -> SearchResult:
    with engine:
        return searcher.search(TASK, budget=budget, engine=engine, **options)


def told(result: SearchResult) -> list[tuple[Any, ...]]:
    """The history without its times."""
    return [(r.trial, r.spec, r.epochs, r.score, r.diverged, r.alone) for r in result.history]


@searchers
def test_a_search_trains_the_supergraph_and_then_what_it_led_to(searcher: Searcher) -> None:
    seen: list[SearchProgress] = []
    warm = chain()
    result = search(searcher, CountingEngine(), warm_start=[warm], callback=seen.append)
    epochs = [record for record in result.history if not record.alone]
    alone = [record for record in result.history if record.alone]
    assert [(r.trial, r.epochs) for r in epochs] == [(0, 1), (1, 2), (2, 3)]
    n_finalists = len(alone) - 1
    assert 1 <= n_finalists <= 2
    assert sorted(r.trial for r in alone) == [-1, *range(3, 3 + n_finalists)]
    assert all(r.epochs == BUDGET.epochs for r in alone)
    assert epochs[-1].spec in {r.spec for r in alone}
    assert (result.spec, result.score) == max(
        ((r.spec, r.score) for r in alone), key=lambda pair: pair[1]
    )
    assert len(seen) == len(result.history)
    assert seen[-1].started == 3 + len(alone)
    assert seen[-1].allowed >= seen[-1].started
    assert result.seconds == pytest.approx(sum(r.seconds for r in result.history))


class ShuffledEngine(LocalEngine):
    """Finishes jobs in another order, as several workers may."""

    n_workers = 3

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index in reversed(range(len(jobs))):
            yield index, jobs[index].run()


@searchers
def test_the_number_of_workers_changes_nothing(searcher: Searcher) -> None:
    one = search(searcher, CountingEngine(), warm_start=[chain()])
    many = search(searcher, ShuffledEngine(), warm_start=[chain()])
    assert told(one) == told(many)
    assert (one.spec, one.score) == (many.spec, many.score)


class KilledError(Exception):
    pass


class MortalEngine(CountingEngine):
    """Dies after some jobs."""

    def __init__(self, workspace: Path, jobs: int) -> None:
        super().__init__(workspace)
        self._left = jobs

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, result in super().run(jobs):
            if self._left == 0:
                raise KilledError
            self._left -= 1
            yield index, result


@searchers
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_search_that_was_killed_ends_as_if_it_had_not_been(
    searcher: Searcher, jobs: int, tmp_path: Path
) -> None:
    whole = search(searcher, CountingEngine(tmp_path / "whole"))
    with pytest.raises(KilledError):
        search(searcher, MortalEngine(tmp_path / "killed", jobs))
    again = search(searcher, CountingEngine(tmp_path / "killed"))
    assert told(whole) == told(again)


def structure(seed: int) -> dict[str, Any]:
    return dict(CellSpace(1).sample(np.random.default_rng(seed)).structure)


class PlayedEngine(Engine):
    """Makes results up: children of an epoch by its number, and a score for every spec."""

    def __init__(
        self,
        *,
        n_workers: int = 1,
        seconds: float = 1.0,
        planned_seconds: float = 1.0,
        diverge: Callable[[int], bool] = lambda epoch: False,
        score: Callable[[ModelSpec], float] = lambda spec: 0.5,
    ) -> None:
        super().__init__(Path("never-written"), "cpu")
        self.n_workers = n_workers
        self.jobs: list[Any] = []
        self._seconds, self._planned_seconds = seconds, planned_seconds
        self._diverge, self._score = diverge, score

    def share(self, task: Task) -> SharedTask:
        return SharedTask(task.fingerprint, task=task)

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, each in enumerate(jobs):
            self.jobs.append(each)
            if isinstance(each, TrainingJob):
                score = self._score(each.spec)
                yield index, TrainingResult(score, None, each.epochs, 1.0, score <= 0)
            elif isinstance(each, SupernetTimingJob):
                yield index, SupernetTiming(self._planned_seconds, 1.0)
            else:
                children = tuple(Child(structure(10 * each.epoch + i), 0.9 - i) for i in range(3))
                yield index, SupernetResult(children, self._seconds, self._diverge(each.epoch))

    @property
    def epochs(self) -> int:
        return sum(isinstance(each, SupernetJob) for each in self.jobs)

    @property
    def trained(self) -> list[ModelSpec]:
        return [each.spec for each in self.jobs if isinstance(each, TrainingJob)]


@pytest.mark.parametrize(("n_workers", "epochs"), [(1, 4), (2, 4)])
def test_the_supergraph_takes_two_thirds_of_the_time(n_workers: int, epochs: int) -> None:
    budget = SearchBudget(trials=20, epochs=2, seconds=6.0)
    # They take longer than was planned for.
    engine = PlayedEngine(n_workers=n_workers, planned_seconds=0.1)
    search(EnasSearcher(nodes=1, finalists=2), engine, budget)
    assert engine.epochs == epochs
    assert [dict(spec.structure) for spec in engine.trained] == [structure(40), structure(41)]


@pytest.mark.parametrize(
    ("trials", "n_warm", "expected"), [(1, 0, 1), (2, 1, 1), (4, 1, 3), (2, 3, 1)]
)
def test_the_trials_of_the_budget_bound_what_is_trained_alone(
    trials: int, n_warm: int, expected: int
) -> None:
    engine = PlayedEngine()
    warm = [chain(8 + i) for i in range(n_warm)]
    searcher = EnasSearcher(nodes=1, finalists=3)
    search(searcher, engine, SearchBudget(trials, epochs=1), warm_start=warm)
    assert engine.epochs == trials
    assert len(engine.trained) == expected + n_warm


def test_after_an_epoch_that_took_too_long_one_child_is_still_trained() -> None:
    engine = PlayedEngine(seconds=100.0)
    budget = SearchBudget(trials=20, epochs=2, seconds=6.0)
    result = search(EnasSearcher(nodes=1), engine, budget, warm_start=[chain()])
    assert engine.epochs == 1
    assert [dict(spec.structure) for spec in engine.trained] == [structure(10)]
    assert result.score == 0.5


def test_a_supergraph_that_diverges_leaves_the_children_of_the_epoch_before() -> None:
    engine = PlayedEngine(diverge=lambda epoch: epoch == 3)
    result = search(EnasSearcher(nodes=1, finalists=1), engine, SearchBudget(trials=9, epochs=2))
    assert engine.epochs == 3
    assert [dict(spec.structure) for spec in engine.trained] == [structure(20)]
    assert [r.diverged for r in result.history] == [False, False, True, False]


def test_a_warm_start_wins_if_it_is_better() -> None:
    warm = chain()
    engine = PlayedEngine(score=lambda spec: 0.9 if spec == warm else 0.8)
    result = search(DartsSearcher(nodes=1), engine, BUDGET, warm_start=[warm])
    assert (result.spec, result.score) == (warm, 0.9)
    engine = PlayedEngine(score=lambda spec: 0.7 if spec == warm else 0.8)
    assert search(DartsSearcher(nodes=1), engine, BUDGET, warm_start=[warm]).score == 0.8


def test_the_warm_start_is_left_where_the_supergraph_comes_to_nothing() -> None:
    engine = PlayedEngine(diverge=lambda epoch: True)
    assert search(DartsSearcher(nodes=1), engine, BUDGET, warm_start=[chain()]).spec == chain()


def test_a_search_that_comes_to_nothing_is_a_search_error_with_its_history() -> None:
    with pytest.raises(SearchError) as caught:
        search(DartsSearcher(nodes=1), PlayedEngine(diverge=lambda epoch: True))
    assert len(caught.value.history) == 1
    with pytest.raises(SearchError) as caught:
        search(EnasSearcher(nodes=1), PlayedEngine(score=lambda spec: 0.0))
    assert len(caught.value.history) == 3 + 2


def test_an_impossible_device_is_an_input_error() -> None:
    with pytest.raises(InputError, match="device"):
        job(device="tpu").run()


@searchers
@pytest.mark.parametrize(("seconds", "planned"), [(9.0, 1), (60.0, 4), (1e9, 5)])
def test_with_a_time_limit_as_many_epochs_are_planned_as_there_is_time_for(
    searcher: Searcher, seconds: float, planned: int
) -> None:
    engine = PlayedEngine(seconds=0.1, planned_seconds=10.0)
    search(searcher, engine, SearchBudget(trials=5, epochs=1, seconds=seconds))
    trained = [each for each in engine.jobs if isinstance(each, SupernetJob)]
    assert [each.epoch for each in trained] == list(range(1, planned + 1))
    assert {each.epochs for each in trained} == {planned}


def test_without_a_time_limit_nothing_is_timed_and_fifty_epochs_are_enough() -> None:
    engine = PlayedEngine()
    search(DartsSearcher(nodes=1), engine, SearchBudget(trials=10**6, epochs=1))
    assert [type(each) for each in engine.jobs] == [SupernetJob] * 50 + [TrainingJob]


@methods
def test_timing_counts_whole_epochs_and_survives_json(method: Method) -> None:
    task = SharedTask(TASK.fingerprint, task=TASK)
    timing = SupernetTimingJob(task, method, nodes=1, device="cpu").run()
    assert 0 < timing.epoch_seconds < math.inf
    assert timing.seconds > 0
    assert SupernetTiming.from_json(timing.to_json()) == timing
