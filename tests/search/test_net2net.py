import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from automl_support import CountingEngine, ScriptedEngine, chain, scored, stripes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trautoml.engine import Engine, LocalEngine, WorkerEngine
from trautoml.errors import InputError, SearchError, SpecError
from trautoml.jobs import Ancestor, TrainingJob, TrainingResult
from trautoml.networks import build_chain
from trautoml.recording import RecordingEngine
from trautoml.search import SearchBudget, Searcher, SearchProgress, SearchResult
from trautoml.search.net2net import Net2NetSearcher, growths
from trautoml.search.random_search import RandomSearcher
from trautoml.spaces import CellSpace, ChainSpace
from trautoml.spec import ModelSpec
from trautoml.store import Store
from trautoml.task import Task
from trautoml.testing import SearcherContract

Structure = dict[str, Any]

POOLED = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
CELLS = ModelSpec("cells", {"of another": "architecture"}, chain().hyper)
TIME = 60.0


def quality(spec: ModelSpec) -> float:
    """A fixed merit of every spec in (0, 1), as good as random."""
    return int(spec.digest, 16) / 16**16


def noisy(spec: ModelSpec, epochs: float) -> TrainingResult:
    return scored(quality(spec) * 7919 * epochs % 1, epochs, seconds=epochs)


def fragile(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Let some diverge, often with a high score; and give some scores more than once."""
    diverged = int(spec.digest, 16) % 3 == 0
    score = round(quality(spec), 1) * (1.0 if diverged else 0.5)
    return scored(score, epochs, diverged=diverged)


def larger(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Score a network by its size."""
    return scored(math.tanh(1e-4 * size(spec)), epochs)


def size(spec: ModelSpec) -> int:
    layers, dense = spec.structure["layers"], spec.structure["dense"]
    return sum(x["channels"] * x["kernel"] ** 2 for x in layers) + sum(dense)


def search(
    engine: Engine,
    *,
    trials: int = 20,
    epochs: int = 9,
    seconds: float | None = None,
    warm_start: Sequence[ModelSpec] = (),
    callback: Callable[[SearchProgress], None] | None = None,
    task: Task | None = None,
    **options: Any,
) -> SearchResult:
    return Net2NetSearcher(**{"seed": 1} | options).search(
        task or stripes(),
        budget=SearchBudget(trials, epochs, seconds),
        engine=engine,
        warm_start=warm_start,
        callback=callback,
    )


def essence(result: SearchResult) -> tuple[Any, ...]:
    """All of a result but the seconds."""
    history = [replace(record, seconds=0.0) for record in result.history]
    return result.spec, result.score, history


def is_one_step(parent: Structure, child: Structure) -> bool:
    """Whether one layer is 1.5 or 2 times as wide, or one that can be the identity was put in."""
    if parent["batch_norm"] != child["batch_norm"]:
        return False
    for part, width in (("layers", lambda x: x["channels"]), ("dense", lambda x: x)):
        old, new = parent[part], child[part]
        other = "dense" if part == "layers" else "layers"
        if old == new or parent[other] != child[other]:
            continue
        if len(new) == len(old) + 1:
            put_in = [i for i in range(1, len(new)) if new[:i] + new[i + 1 :] == old]
            return any(is_identity(new[i - 1], new[i]) for i in put_in)
        changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        [i] = changed
        ratio = width(new[i]) / width(old[i])
        alike = part == "dense" or {**old[i], "channels": 0} == {**new[i], "channels": 0}
        return alike and (ratio == 2 or 0 <= ratio - 1.5 < 1 / width(old[i]))
    return False


def is_identity(before: Any, layer: Any) -> bool:
    if isinstance(layer, int):
        return bool(layer == before)
    plain = {"stride": 1, "pool_kernel": 1, "pool_stride": 1, "channels": before["channels"]}
    return bool({**plain, "kernel": layer["kernel"]} == layer and layer["kernel"] in {3, 5})


class TestContract(SearcherContract):
    budget = SearchBudget(trials=12, epochs=2)

    def searcher(self) -> Searcher:
        return Net2NetSearcher(seed=1)


# --- steps ------------------------------------------------------------------------------------


def test_the_growths_of_a_small_chain() -> None:
    structure = {"layers": [POOLED], "dense": [5], "batch_norm": False}
    identity = {**POOLED, "pool_kernel": 1, "pool_stride": 1}
    found = growths(structure)
    for layers, dense in (
        ([{**POOLED, "channels": 12}], [5]),
        ([{**POOLED, "channels": 16}], [5]),
        ([POOLED, identity], [5]),
        ([POOLED, {**identity, "kernel": 5}], [5]),
        ([POOLED], [8]),
        ([POOLED], [10]),
        ([POOLED], [5, 5]),
    ):
        found.remove({"layers": layers, "dense": dense, "batch_norm": False})
    assert found == []


def multiplications(structure: Structure) -> float:
    """Count those of the convolutions, for each pixel of a large image, on the network itself."""
    side, total = 1024, 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    with torch.device("meta"):
        network = build_chain(structure, (side, side, 3), 2)
        for module in network:
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        network(torch.empty(1, 3, side, side))
    return total / side**2


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_whatever_grows_stays_within_twice_the_chain_space(seed: int) -> None:
    dearest = {**POOLED, "kernel": 5, "channels": 64}
    limit = 2 * multiplications({"layers": [dearest] * 4, "dense": [], "batch_norm": True})
    rng = np.random.default_rng(seed)
    structure = ChainSpace().sample(rng).structure
    while grown := growths(structure):
        assert all(is_one_step(structure, each) for each in grown)
        structure = grown[int(rng.integers(len(grown)))]
    layers, dense = structure["layers"], structure["dense"]
    assert len(layers) <= 8
    assert all(layer["channels"] <= 128 for layer in layers)
    assert len(dense) <= 4
    assert all(units <= 512 for units in dense)
    assert multiplications(structure) <= limit
    # Nothing that is within the limits was left out: here each step breaks one.
    assert len(layers) == 8 or multiplications(structure) > limit / 8
    assert dense == [] or (len(dense) == 4 and min(dense) > 256)


def test_growths_of_something_else_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^layers: expected"):
        growths(CELLS.structure)


# --- the way it goes --------------------------------------------------------------------------


def check_the_way(result: SearchResult, engine: ScriptedEngine, n_first: int, slots: int) -> None:
    """Follow a search and check each of its jobs; they are in the order of the history."""
    jobs, history = engine.jobs, result.history
    for job, record in zip(jobs[:n_first], history[:n_first], strict=True):
        assert (record.alone, job.ancestors) == (True, ())
        assert (job.epochs, job.schedule_epochs) == (9, 9)
    grown = [i for i, job in enumerate(jobs) if job.ancestors]
    n_children = len(grown)
    assert grown == list(range(n_first, n_first + n_children))
    for start in range(n_first, n_first + n_children, slots):
        round_ = range(start, min(start + slots, n_first + n_children))
        sound = [i for i in range(start) if not history[i].diverged]
        teacher = max(sound, key=lambda i: (history[i].score, -i))
        for i in round_:
            job, record = jobs[i], history[i]
            assert not record.alone
            assert (job.epochs, job.schedule_epochs) == (3, 3)
            line = (*jobs[teacher].ancestors, Ancestor(jobs[teacher].spec, jobs[teacher].epochs))
            assert job.ancestors == line
            assert is_one_step(line[-1].spec.structure, job.spec.structure)
            assert job.spec.hyper == line[-1].spec.hyper
    specs = [job.spec for job in jobs[: n_first + n_children]]
    assert len(set(specs)) == len(specs)
    children = [record for record in history if not record.alone and not record.diverged]
    best = sorted(children, key=lambda record: -record.score)
    finals = history[n_first + n_children :]
    assert [record.spec for record in finals] == [r.spec for r in best[: len(finals)]]
    assert all(record.alone and record.epochs == 9 for record in finals)
    alone = [record for record in history if record.alone and not record.diverged]
    assert result.score == max(record.score for record in alone)
    assert result.spec in {record.spec for record in alone if record.score == result.score}


@pytest.mark.parametrize("script", [larger, noisy, fragile])
@pytest.mark.parametrize("seed", range(4))
def test_children_are_one_step_from_the_best_so_far_and_the_best_are_trained_alone(
    script: Callable[[ModelSpec, float], TrainingResult], seed: int
) -> None:
    engine = ScriptedEngine(script)
    result = search(engine, seed=seed)
    check_the_way(result, engine, n_first=10, slots=4)
    assert [record.alone for record in result.history] == [True] * 10 + [False] * 6 + [True] * 4
    assert [record.trial for record in result.history] == list(range(20))


def test_where_larger_is_better_the_line_gets_longer_and_the_result_is_a_grown_network() -> None:
    engine = ScriptedEngine(larger)
    result = search(engine, trials=60, slots=3)
    lengths = [len(job.ancestors) for job in engine.jobs if job.ancestors]
    assert lengths == [1 + i // 3 for i in range(20)]
    first = max(result.history[:30], key=lambda record: record.score)
    assert size(result.spec) > size(first.spec)


def test_the_first_candidates_are_those_of_random_search() -> None:
    random = RandomSearcher(seed=3).search(
        stripes(), budget=SearchBudget(10, 9), engine=ScriptedEngine(noisy)
    )
    assert search(ScriptedEngine(noisy), seed=3).history[:10] == random.history


@pytest.mark.parametrize("slots", [1, 4, 7])
@pytest.mark.parametrize(
    ("trials", "n_first", "n_alone"),
    [(1, 1, 0), (2, 2, 0), (3, 1, 1), (4, 2, 1), (5, 2, 1), (7, 3, 2), (12, 6, 2), (13, 6, 3)],
)
def test_all_trials_of_the_budget_are_used(
    trials: int, n_first: int, n_alone: int, slots: int
) -> None:
    engine = ScriptedEngine(noisy)
    told: list[SearchProgress] = []
    result = search(engine, trials=trials, slots=slots, callback=told.append)
    n_children = trials - n_first - n_alone
    expected = [True] * n_first + [False] * n_children + [True] * n_alone
    assert [record.alone for record in result.history] == expected
    assert len(engine.jobs) == len(told) == trials == told[-1].started
    assert result.seconds == sum(record.seconds for record in result.history)
    assert all(p.done <= p.trainings <= slots or p.epoch == 9 for p in told)
    assert all(p.started <= p.allowed == trials for p in told)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1), (2, 1), (3, 1), (4, 2), (10, 4)])
def test_children_train_a_third_of_the_epochs(epochs: int, expected: int) -> None:
    engine = ScriptedEngine(noisy)
    search(engine, epochs=epochs)
    assert {job.epochs for job in engine.jobs if job.ancestors} == {expected}
    assert {job.epochs for job in engine.jobs if not job.ancestors} == {epochs}


def test_a_seed_draws_everything() -> None:
    first, again, other = (search(ScriptedEngine(larger), seed=s) for s in (1, 1, 2))
    assert first == again
    assert {record.spec for record in first.history}.isdisjoint(r.spec for r in other.history)


def test_slots_below_1_are_refused() -> None:
    with pytest.raises(InputError, match="expected slots >= 1, got 0"):
        Net2NetSearcher(slots=0)


# --- warm starts ------------------------------------------------------------------------------


def test_the_best_warm_start_is_the_teacher() -> None:
    warm = [chain(8), chain(24), chain(16), CELLS]
    scores = dict(zip(warm, (0.4, 0.6, 0.5, 0.9), strict=True))
    engine = ScriptedEngine(lambda spec, e: scored(scores.get(spec, 0.3), e))
    result = search(engine, trials=8, warm_start=warm)
    assert [job.spec for job in engine.jobs[:4]] == warm
    assert [record.trial for record in result.history] == [-1, -2, -3, -4, 0, 1, 2, 3]
    assert [job.ancestors for job in engine.jobs[4:6]] == [(Ancestor(chain(24), 9),)] * 2
    assert result.spec == CELLS


def test_random_candidates_follow_where_no_warm_start_can_be_a_teacher() -> None:
    def script(spec: ModelSpec, epochs: float) -> TrainingResult:
        return scored(quality(spec), epochs, diverged=spec == chain())

    engine = ScriptedEngine(script)
    result = search(engine, trials=12, warm_start=[CELLS, chain()])
    assert [record.alone for record in result.history] == [True] * 6 + [False] * 4 + [True] * 2
    drawn = {record.trial: record.spec for record in search(ScriptedEngine(noisy)).history}
    assert all(result.history[2 + i].spec == drawn[i] for i in range(4))
    teacher = max((record.spec for record in result.history[2:6]), key=quality)
    assert {job.ancestors for job in engine.jobs if job.ancestors} >= {(Ancestor(teacher, 9),)}


def test_a_space_of_other_networks_is_searched_at_random() -> None:
    result = search(ScriptedEngine(noisy), space=CellSpace(), trials=9)
    assert len(result.history) == 9
    assert all(record.alone for record in result.history)


# --- nothing to grow --------------------------------------------------------------------------


def huge() -> ModelSpec:
    layer = {**POOLED, "kernel": 5, "channels": 128}
    return replace(chain(), structure={"layers": [layer] * 2, "dense": [], "batch_norm": True})


def test_a_network_that_can_not_grow_ends_the_search() -> None:
    assert growths(huge().structure) == []
    result = search(ScriptedEngine(noisy), warm_start=[huge()])
    assert [record.spec for record in result.history] == [result.spec] == [huge()]


def test_when_all_children_of_the_best_are_tried_the_next_best_is_the_teacher() -> None:
    # No child is as good as its parent, and each of the two has four.
    best, second = chain(8), chain(64)
    n_best, n_second = len(growths(best.structure)), len(growths(second.structure))
    scores = {best: 0.9, second: 0.8}
    engine = ScriptedEngine(lambda spec, e: scored(scores.get(spec, 0.1 * quality(spec)), e))
    search(engine, trials=30, warm_start=[second, best], slots=3)
    teachers = [job.ancestors[-1].spec for job in engine.jobs if job.ancestors]
    assert teachers[: n_best + n_second] == [best] * n_best + [second] * n_second
    assert not {best, second} & set(teachers[n_best + n_second :])


# --- divergence -------------------------------------------------------------------------------


def test_if_all_diverge_the_error_carries_the_history() -> None:
    engine = ScriptedEngine(lambda _, e: scored(1 / 3, e, diverged=True))
    with pytest.raises(SearchError, match="all 12 candidates of the search on stripes") as caught:
        search(engine, trials=12)
    assert len(caught.value.history) == 12


def test_children_that_diverge_are_neither_teachers_nor_trained_alone() -> None:
    def script(spec: ModelSpec, epochs: float) -> TrainingResult:
        return scored(0.99 if epochs == 3 else quality(spec), epochs, diverged=epochs == 3)

    engine = ScriptedEngine(script)
    result = search(engine)
    assert [record.alone for record in result.history] == [True] * 10 + [False] * 6
    assert len({job.ancestors for job in engine.jobs if job.ancestors}) == 1
    assert result.score == max(record.score for record in result.history if record.alone)


def test_a_child_that_diverges_alone_is_not_the_result() -> None:
    firsts = {record.spec for record in search(ScriptedEngine(noisy)).history[:10]}

    def script(spec: ModelSpec, epochs: float) -> TrainingResult:
        diverged = epochs == 9 and spec not in firsts
        return scored(0.9 - 0.1 * quality(spec), epochs, diverged=diverged)

    result = search(ScriptedEngine(script))
    assert [record.diverged for record in result.history[-4:]] == [True] * 4
    assert result.spec in firsts


def test_random_candidates_follow_until_one_does_not_diverge() -> None:
    sound = search(ScriptedEngine(noisy), trials=40).history[16].spec

    def script(spec: ModelSpec, epochs: float) -> TrainingResult:
        return scored(0.5, epochs, diverged=epochs == 9 and spec != sound)

    engine = ScriptedEngine(script)
    history = search(engine, trials=24).history
    assert [record.alone for record in history[:21]] == [True] * 20 + [False]
    assert engine.jobs[20].ancestors == (Ancestor(sound, 9),)


# --- the time, and a store --------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def uneven(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Take another time for every training, so that sums depend on the order."""
    return scored(quality(spec) * 7919 * epochs % 1, epochs, seconds=epochs * (0.1 + quality(spec)))


def timed(
    engine: Engine, store: Store, callback: Callable[[SearchProgress], None] | None = None
) -> SearchResult:
    recording = RecordingEngine(engine, store)
    return search(recording, trials=200, seconds=TIME, callback=callback)


@pytest.mark.parametrize(("n_workers", "expected"), [(1, (9, 7, 6)), (2, (17, 16, 11))])
def test_each_phase_has_its_share_of_the_time(
    n_workers: int, expected: tuple[int, int, int]
) -> None:
    # Each epoch takes 1 s: 9 trainings of 9 s until 75 s are over, 7 of 3 s until 100 s are.
    engine = ScriptedEngine(
        lambda spec, e: scored(quality(spec), e, seconds=e), n_workers=n_workers
    )
    history = search(engine, trials=500, seconds=150.0).history
    phases = [(alone, len(list(group))) for alone, group in groupby(history, lambda r: r.alone)]
    assert phases == list(zip((True, False, True), expected, strict=True))


def test_without_a_teacher_all_of_the_time_is_for_random_candidates() -> None:
    engine = ScriptedEngine(lambda _, e: scored(1 / 3, e, seconds=e, diverged=True))
    with pytest.raises(SearchError):
        search(engine, trials=500, seconds=150.0)
    assert len(engine.jobs) == 17


@pytest.mark.parametrize("shuffle", range(4))
def test_a_search_that_ran_out_of_time_is_repeated_with_the_same_winner(
    store: Store, shuffle: int
) -> None:
    first = timed(ScriptedEngine(uneven, shuffle=shuffle), store)
    assert 0 < store.n_trainings() == len(first.history)
    assert first.seconds >= TIME
    assert any(not record.alone for record in first.history)
    again = ScriptedEngine(uneven, shuffle=shuffle + 1)
    assert timed(again, store) == first
    assert again.jobs == []


@pytest.mark.parametrize("kill", range(1, 20, 3))
def test_a_killed_search_with_a_time_limit_forgets_nothing(store: Store, kill: int) -> None:
    def interrupt(_: SearchProgress) -> None:
        if store.n_trainings() == kill:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        timed(ScriptedEngine(uneven, shuffle=1), store, interrupt)
    known = store.n_trainings()
    engine = ScriptedEngine(uneven, shuffle=2)
    result = timed(engine, store)
    assert len(result.history) == known + len(engine.jobs) == store.n_trainings()
    assert result.seconds >= TIME


# --- on real trainings ------------------------------------------------------------------------


def real(engine: Engine, **options: Any) -> SearchResult:
    return search(engine, trials=9, epochs=3, warm_start=[chain(4)], slots=3, **options)


def test_a_search_repeated_over_a_store_trains_nothing_again(store: Store) -> None:
    inner = CountingEngine(store.folder)
    engine = RecordingEngine(inner, store)

    # First it is interrupted, as by a kill, in the second round of children.
    def interrupt(progress: SearchProgress) -> None:
        if progress.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        real(engine, callback=interrupt)
    assert store.n_trainings() == 1 + 3 + 1
    first = real(engine)
    executed = list(inner.executed)
    assert len(executed) == len(set(executed)) == len(first.history) == store.n_trainings()
    assert real(engine) == first
    assert inner.executed == executed
    with LocalEngine() as undisturbed:
        assert essence(first) == essence(real(undisturbed))


def test_one_worker_two_workers_and_this_process_find_the_same() -> None:
    found = []
    for engine in (LocalEngine(), WorkerEngine(2)):
        with engine:
            found.append(essence(real(engine)))
    assert found[0] == found[1]


def test_children_know_what_their_teacher_learned(tmp_path: Path) -> None:
    task = stripes(noise=90.0)
    engine = LocalEngine(tmp_path, "cpu")
    with engine:
        result = real(engine, task=task)
        teacher = result.history[0]
        children = [record for record in result.history if not record.alone]
        fresh = [
            TrainingJob(engine.share(task), record.spec, record.epochs, seed=1).run().score
            for record in children
        ]
    inherited = [record.score for record in children]
    assert np.mean(inherited) > np.mean(fresh) + 0.1
    assert result.score >= teacher.score
