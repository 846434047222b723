"""Bayesian optimisation by Optuna's samplers."""

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from automl_support import ScriptedEngine, chain, scored, stripes
from optuna.trial import FrozenTrial, TrialState
from scipy import stats
from threadpoolctl import threadpool_info

from trautoml.errors import InputError
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.recording import RecordingEngine
from trautoml.search import SearchBudget, Searcher, SearchResult
from trautoml.search.bayesian import BayesianSearcher
from trautoml.search.random_search import RandomSearcher
from trautoml.spaces import ChainSpace, RandomChoice, SearchSpace
from trautoml.spaces._base import Choice
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.store import Store
from trautoml.testing import FakeEngine, by_merit

STARTUP = 8
models = pytest.mark.parametrize("model", ["gp", "tpe"])


class Hill(SearchSpace):
    """A place on one of three hills; nothing that could be built."""

    def define(self, choice: Choice) -> ModelSpec:
        structure = {
            "hill": choice.suggest_categorical("hill", ["high", "middle", "low"]),
            "x": choice.suggest_float("x", 0.0, 1.0),
            "y": choice.suggest_float("y", 0.0, 1.0),
        }
        return ModelSpec("hill", structure, Hyperparameters(0.1, 0.9, 0.0, 16, 1.0))

    def params_of(self, spec: ModelSpec) -> dict[str, Any] | None:
        return dict(spec.structure) if spec.architecture == "hill" else None


def height(spec: ModelSpec) -> float:
    """Height of a place: 1 at the top of the highest hill."""
    if spec.architecture != "hill":
        return 0.0
    place = spec.structure
    squared = (place["x"] - 0.3) ** 2 + (place["y"] - 0.7) ** 2
    return {"high": 1.0, "middle": 0.8, "low": 0.6}[place["hill"]] * math.exp(-4 * squared)


def climb(spec: ModelSpec, epochs: float) -> TrainingResult:
    return scored(height(spec), epochs)


def by_digest(spec: ModelSpec, epochs: float) -> TrainingResult:
    return scored(int(spec.digest, 16) / 16**16, epochs)


def search(
    searcher: Searcher,
    trials: int = 10,
    engine: Any = None,
    **options: Any,
) -> SearchResult:
    budget = SearchBudget(trials, 1)
    return searcher.search(
        stripes(), budget=budget, engine=engine or ScriptedEngine(climb), **options
    )


def make(model: str, **options: Any) -> BayesianSearcher:
    return BayesianSearcher(**{"space": Hill(), "model": model, "seed": 1, "slots": 2} | options)


# --- it learns --------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "trials", "slots"), [("gp", 10, 1), ("tpe", 30, 4)])
def test_it_beats_random_search(model: str, trials: int, slots: int) -> None:
    seeds = range(20)
    found = [search(make(model, seed=s, slots=slots), trials).score for s in seeds]
    drawn = [search(RandomSearcher(Hill(), seed=s), trials).score for s in seeds]
    assert np.mean(found) > np.mean(drawn)
    assert stats.wilcoxon(found, drawn, alternative="greater").pvalue < 0.01


@models
@pytest.mark.parametrize("space", [Hill(), ChainSpace()])
@pytest.mark.parametrize(("slots", "n_random"), [(1, 8), (3, 9), (9, 9)])
def test_the_first_candidates_are_those_of_random_search(
    model: str, space: SearchSpace, slots: int, n_random: int
) -> None:
    searcher, engine = make(model, space=space, slots=slots), ScriptedEngine(by_digest)
    found = [r.spec for r in search(searcher, n_random + 1, engine).history]
    drawn = [r.spec for r in search(RandomSearcher(space, seed=1), n_random + 1).history]
    assert found[:n_random] == drawn[:n_random]
    assert found[n_random] != drawn[n_random]
    assert space.params_of(found[n_random]) is not None


@models
def test_what_follows_depends_on_the_scores(model: str) -> None:
    found = []
    for top in ("high", "low"):

        def script(spec: ModelSpec, epochs: float, top: str = top) -> TrainingResult:
            return scored(0.9 if spec.structure["hill"] == top else 0.1, epochs)

        found.append(search(make(model), STARTUP + 2, ScriptedEngine(script)).history)
    first, second = ([record.spec for record in history] for history in found)
    assert first[:STARTUP] == second[:STARTUP]
    assert first[STARTUP:] != second[STARTUP:]


def test_those_of_a_round_know_of_each_other() -> None:
    history = search(make("gp", slots=4), STARTUP + 4).history
    for one, other in itertools.combinations([r.spec.structure for r in history[STARTUP:]], 2):
        # On its own, each would go to where most is expected.
        apart = math.dist((one["x"], one["y"]), (other["x"], other["y"]))
        assert one["hill"] != other["hill"] or apart > 0.1


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_tpe_is_optunas() -> None:
    sampler = optuna.samplers.TPESampler(
        seed=1, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    expected = []
    for number in range(0, 20, 4):
        round_ = []
        for index in range(number, number + 4):
            if index < STARTUP:
                choice = RandomChoice(np.random.default_rng([1, 0, index]))
                Hill().define(choice)
                study.enqueue_trial(choice.params)
            trial = study.ask()
            round_.append((trial, Hill().define(trial)))
        for trial, spec in round_:
            study.tell(trial, height(spec))
            expected.append(spec)
    assert [r.spec for r in search(make("tpe", slots=4), 20).history] == expected


# --- warm starts ------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def trials_of(store: Store, model: str) -> list[FrozenTrial]:
    """Optuna's records of the search on the stripes."""
    storage = optuna.storages.RDBStorage(store.url)
    name = f"{model} {stripes().fingerprint[:16]}"
    assert optuna.get_all_study_names(storage) == [name]
    trials = optuna.load_study(study_name=name, storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    return trials


@models
def test_warm_starts_of_the_space_are_learned_from(store: Store, model: str) -> None:
    warm = [chain(24), chain(16), ChainSpace().sample(np.random.default_rng(5))]
    with FakeEngine() as engine:
        searcher = make(model, space=ChainSpace(), storage=store.url)
        result = search(searcher, 6, engine, warm_start=warm)
    trials = trials_of(store, model)
    expected = [r for r in result.history if ChainSpace().params_of(r.spec) is not None]
    assert [r.trial for r in expected] == [-2, -3, 0, 1, 2], "a width of 24 is in no chain space"
    assert [trial.params for trial in trials] == [ChainSpace().params_of(r.spec) for r in expected]
    assert [trial.value for trial in trials] == [r.score for r in expected]
    assert {r.spec for r in result.history} > set(warm)


@models
def test_what_a_warm_start_teaches_shows_in_the_next_candidates(model: str) -> None:
    top = Hill().define(optuna.trial.FixedTrial({"hill": "high", "x": 0.3, "y": 0.7}))
    searcher = make(model, slots=1)
    cold = search(searcher, STARTUP + 1)
    warm = search(searcher, STARTUP + 2, warm_start=[top])
    elsewhere = search(searcher, STARTUP + 2, warm_start=[chain()])
    assert warm.history[0].spec == warm.spec == top
    cold_specs = [r.spec for r in cold.history]
    assert [r.spec for r in warm.history[1:-1]] == cold_specs[:-1]
    assert [r.spec for r in elsewhere.history[1:]] == cold_specs
    assert warm.history[-1].spec != cold_specs[-1]


@models
def test_a_warm_start_from_elsewhere_can_win(model: str) -> None:
    engine = ScriptedEngine(lambda spec, e: scored(0.99 if spec == chain() else 0.1, e))
    result = search(make(model), 3, engine, warm_start=[chain()])
    assert result.spec == chain()


# --- the same on every machine ----------------------------------------------------------------


def essence(result: SearchResult) -> list[Any]:
    return [replace(record, seconds=0.0) for record in result.history]


def rise(job: TrainingJob) -> TrainingResult:
    return replace(by_merit(job), score=height(job.spec))


@models
def test_neither_threads_nor_workers_nor_a_break_matter(model: str) -> None:
    threads = torch.get_num_threads()
    searcher = make(model)
    with FakeEngine(rise) as engine:
        expected = essence(search(searcher, STARTUP + 3, engine))
    random_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    try:
        torch.set_num_threads(3)
        first = FakeEngine(rise, n_workers=3, shuffle=1, interrupt_after=STARTUP + 1)
        with first, pytest.raises(KeyboardInterrupt):
            search(searcher, STARTUP + 3, first)
        second = FakeEngine(rise, n_workers=2, shuffle=2, memory=first.memory)
        with second:
            assert essence(search(searcher, STARTUP + 3, second)) == expected
        assert len(second.executed) == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), random_state[0])
    assert np.random.get_state()[1].tolist() == random_state[1]  # noqa: NPY002


def test_the_model_computes_on_one_thread() -> None:
    seen: list[int] = []

    class Watched(Hill):
        def define(self, choice: Choice) -> ModelSpec:
            spec = super().define(choice)  # Optuna computes when the first choice is asked for
            if isinstance(choice, optuna.Trial):
                blas = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
                seen.extend([torch.get_num_threads(), *blas])
            return spec

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        search(make("gp", space=Watched()), 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}


@models
def test_a_diverged_candidate_is_learned_from_and_does_not_win(store: Store, model: str) -> None:
    def script(spec: ModelSpec, epochs: float) -> TrainingResult:
        diverged = spec.structure["hill"] == "high"
        return scored(1 / 3 if diverged else 0.2, epochs, diverged=diverged)

    result = search(make(model, storage=store.url), STARTUP + 1, ScriptedEngine(script))
    assert result.score == 0.2
    trials = trials_of(store, model)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert {trial.value for trial in trials} == {1 / 3, 0.2}


# --- Optuna's records -------------------------------------------------------------------------


@models
def test_optuna_keeps_the_study_in_the_stores_database(store: Store, model: str) -> None:
    told = optuna.logging.get_verbosity()
    result = search(make(model, storage=store.url))
    assert optuna.logging.get_verbosity() == told
    trials = trials_of(store, model)
    assert len(trials) == len(result.history) == 10
    for trial, record in zip(trials, result.history, strict=True):
        assert trial.params == record.spec.structure
        assert trial.value == record.score
        assert trial.state == TrialState.COMPLETE
        assert ModelSpec.from_json(trial.user_attrs["spec"]) == record.spec
    assert [r.spec for r in search(make(model)).history] == [r.spec for r in result.history]
    assert store.log() == []


@models
def test_a_search_repeated_over_a_store_trains_nothing_again(store: Store, model: str) -> None:
    searcher = make(model, space=ChainSpace(), storage=store.url)
    with FakeEngine(interrupt_after=3) as killed, pytest.raises(KeyboardInterrupt):
        search(searcher, 4, RecordingEngine(killed, store))
    assert store.n_trainings() == 3
    assert TrialState.RUNNING in {trial.state for trial in trials_of(store, model)}
    with FakeEngine() as inner:
        engine = RecordingEngine(inner, store)
        first = search(searcher, 4, engine)
        assert search(searcher, 4, engine) == first
        assert len(inner.executed) == 1
    assert len(trials_of(store, model)) == 4


@pytest.fixture
def optuna_says() -> Iterator[list[str]]:
    """What Optuna logs at the level that it is set to."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("optuna")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


@models
def test_optuna_is_quiet(
    store: Store, model: str, optuna_says: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    # Some choices of a chain depend on others: those Optuna draws in another way, and warns.
    search(make(model, space=ChainSpace(), storage=store.url), 10, ScriptedEngine(by_digest))
    assert optuna_says == []
    assert capfd.readouterr() == ("", "")
    optuna.create_study()
    assert len(optuna_says) == 1, "it would have been heard"


@models
def test_after_an_error_optuna_is_what_it_was(model: str) -> None:
    told = optuna.logging.get_verbosity()

    def fail(_: object, __: float) -> TrainingResult:
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        search(make(model), engine=ScriptedEngine(fail))
    assert optuna.logging.get_verbosity() == told


# --- parameters -------------------------------------------------------------------------------


def test_parameters_out_of_range() -> None:
    with pytest.raises(InputError, match='expected model "gp" or "tpe", got \'bo\''):
        make("bo")
    with pytest.raises(InputError, match="expected slots >= 1, got 0"):
        make("gp", slots=0)
