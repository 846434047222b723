import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from automl_support import (
    BUDGET,
    CLOUDS,
    SETTINGS,
    CountingEngine,
    Recorder,
    add_entry,
    chain,
    make_automl,
    stripes,
)

from trautoml import automl as automl_module
from trautoml.automl import TransferAutoML, estimate_search
from trautoml.callbacks import Callbacks
from trautoml.classifier import load_classifier
from trautoml.engine import Engine, LocalEngine, SharedTask
from trautoml.errors import EngineError, InputError, SearchError, StoreError
from trautoml.explain import explain
from trautoml.jobs import checkpoint_folder, resumable_job
from trautoml.outcome import Outcome
from trautoml.probes import Measurement, ProbeSuite
from trautoml.reuse import ReusePolicy
from trautoml.search import HyperbandSearcher, SearchBudget, Searcher, SearchResult, TrialRecord
from trautoml.settings import Settings
from trautoml.spec import ModelSpec
from trautoml.store import Store
from trautoml.task import Task


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probes measure what is written in `CLOUDS`."""

    def measure(_: ProbeSuite, task: Task, *__: object, **___: object) -> Measurement:
        trials = CLOUDS[task.name]
        return Measurement(trials, np.full(trials.shape, 0.01))

    monkeypatch.setattr(ProbeSuite, "measure", measure)


def named(name: str) -> Task:
    return stripes(name, seed=sorted(CLOUDS).index(name))


def accuracy(outcome: Outcome, task: Task) -> float:
    guesses = outcome.model.predict_proba(task.test_images).argmax(1)
    return float((guesses == task.test_labels).mean())


class Found(Searcher):
    """A user's searcher: it names a spec and says what it cost."""

    def __init__(self, spec: ModelSpec | None = None) -> None:
        self.spec = spec or chain(8)
        self.tasks: list[str] = []

    def search(self, task: Task, **_: Any) -> SearchResult:
        self.tasks.append(task.name)
        return SearchResult(self.spec, 0.9, 100.0, ())


# --- Algorithm 1 on real trainings ------------------------------------------------------------


def test_a_new_kind_is_searched_and_its_like_reuses_the_spec(store: Store) -> None:
    recorder = Recorder()
    automl = make_automl(store, callbacks=[recorder], budget=SearchBudget(trials=3, epochs=6))
    task, alike = stripes("first", seed=0), stripes("alike", seed=2)

    first = automl.fit(task)
    assert first.decision.kind == "opened"
    assert first.entry.searched
    assert not first.restored
    assert recorder.hooks == [
        "task_started",
        "probes_progress",
        "decided",
        "search_progress",
        "training_progress",
        "task_finished",
    ]
    recorder.events.clear()

    second = automl.fit(alike)
    assert second.decision.kind == "joined"
    assert second.decision.group == 0
    assert second.spec == first.spec
    assert not second.entry.searched
    assert recorder.hooks == [
        "task_started",
        "probes_progress",
        "decided",
        "training_progress",
        "task_finished",
    ]
    told = dict(recorder.events)
    assert told["decided"] == (second.decision, second.sentence)
    assert told["probes_progress"] == (8, 8)
    assert told["training_progress"] == (6, 6)

    for outcome, its_task in ((first, task), (second, alike)):
        assert accuracy(outcome, its_task) == outcome.test_score
        assert outcome.test_score > 0.5  # chance is a third
    one, other = first.model.state_dict(), second.model.state_dict()
    assert any(not torch.equal(one[name], other[name]) for name in one), "trained afresh"


def test_nothing_is_trained_twice(store: Store) -> None:
    engine = CountingEngine(store.folder)
    make_automl(store, engine=engine).fit(stripes())
    assert len(engine.executed) == len(set(engine.executed)) == store.n_trainings()


def test_training_seconds_are_those_after_the_search(store: Store) -> None:
    # The winner's last training of the search is not paid for a second time.
    class Timed(CountingEngine):
        def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            for index, result in super().run(jobs):
                yield index, replace(result, seconds=1.0)

    searcher = HyperbandSearcher(slots=3)
    short = SearchResult(chain(), 0.9, 1.0, (TrialRecord(0, chain(), 1.0, 0.9, 1.0),))

    def search(task: Task, *, engine: Engine, **_: object) -> SearchResult:
        options = {"epochs": 1, "schedule_epochs": 4, "seed": SETTINGS.seed, "device": "cpu"}
        job = resumable_job(engine.workspace, engine.share(task), chain(), **options)
        assert len(list(engine.run([job]))) == 1
        return short

    searcher.search = search  # type: ignore[method-assign]
    automl = make_automl(
        store, engine=Timed(store.folder), searcher=searcher, budget=SearchBudget(3, epochs=4)
    )
    outcome = automl.fit(stripes())
    assert outcome.seconds["training"] == 3.0  # epochs 2, 3 and 4 at one second each


def test_the_same_stream_on_a_fresh_store_ends_the_same(tmp_path: Path) -> None:
    ends = []
    for folder in ("one", "other"):
        with Store(tmp_path / folder) as store:
            automl = make_automl(store)
            for seed in range(3):
                automl.fit(stripes(f"task {seed}", seed=seed))
            ends.append(
                [(e.decision, e.spec, e.score, e.test_score, e.searched) for e in store.log()]
            )
    assert ends[0] == ends[1]


def test_checkpoints_are_gone_afterwards(store: Store) -> None:
    automl = make_automl(store)
    task = stripes()
    automl.fit(task)
    folder = checkpoint_folder(store.folder, task.fingerprint)
    assert not folder.exists()
    folder.mkdir(parents=True)  # as a kill after the last step leaves it
    automl.fit(task)
    assert not folder.exists()


# --- all kinds of decision --------------------------------------------------------------------


@pytest.mark.usefixtures("scripted")
def test_every_kind_of_decision_runs_through(store: Store) -> None:
    searcher = Found()
    automl = make_automl(store, searcher=searcher)
    outcomes = [automl.fit(named(name)) for name in CLOUDS]
    assert [o.decision.kind for o in outcomes] == ["opened", "joined", "split", "opened"]
    assert [o.decision.group for o in outcomes] == [0, 0, 1, 2]
    assert [o.entry.searched for o in outcomes] == [True, False, True, True]
    assert searcher.tasks == ["first", "near", "far"]
    split = outcomes[2]
    assert split.decision.tested_group == 0
    assert split.decision.p_value is not None
    assert split.decision.p_value < 0.005
    for position, outcome in enumerate(outcomes):
        log = store.log()
        assert outcome.sentence == explain(outcome.decision, log[:position], outcome.entry.name)
        np.testing.assert_array_equal(outcome.entry.trials, CLOUDS[outcome.entry.name])


@pytest.mark.usefixtures("scripted")
def test_a_group_keeps_the_spec_that_opened_it(store: Store) -> None:
    searcher = Found(chain(8))
    automl = make_automl(store, searcher=searcher)
    automl.fit(named("first"))
    searcher.spec = chain(16)
    automl.fit(named("far"))
    assert automl.fit(named("alike")).spec == chain(8)


@pytest.mark.usefixtures("scripted")
def test_seconds_saved_and_standalone(store: Store) -> None:
    automl = make_automl(store, searcher=Found())
    first, joined = automl.fit(named("first")), automl.fit(named("alike"))
    probes = pytest.approx(24 * 0.01)
    assert first.seconds["probes"] == joined.seconds["probes"] == probes
    assert first.seconds["search"] == first.search_estimate == 100.0
    assert first.saved_seconds == pytest.approx(-0.24)
    assert joined.seconds["search"] == 0.0
    # A search leaves its winner trained, so the training after it is part of what it costs.
    alone = 100.0 + first.seconds["training"]
    assert joined.search_estimate == pytest.approx(alone)
    assert joined.saved_seconds == pytest.approx(alone - 0.24 - joined.seconds["training"])


def test_a_search_is_estimated_to_cost_no_more_than_it_may(store: Store) -> None:
    automl = make_automl(store, searcher=Found(), budget=SearchBudget(3, 2, seconds=50))
    automl.fit(named("first"))
    assert automl.fit(named("alike")).search_estimate == 50.0


def test_estimate_search(store: Store) -> None:
    def add(seed: int, probes: float, search: float, n: int = 60) -> None:
        add_entry(
            store,
            stripes(seed=seed, n=n),
            SETTINGS.grouper().predict_one(CLOUDS["first"]),
            searched=search > 0,
            seconds={"probes": probes, "search": search, "training": 1.0},
            search_estimate=search,
        )

    assert estimate_search([], 60, 5.0) == 0.0
    add(0, probes=2.0, search=19.0)
    add(1, probes=1.0, search=0.0)  # reused: says nothing about searches
    add(2, probes=1.0, search=29.0)
    assert estimate_search(store.log(), 60, 5.0) == pytest.approx(5.0 * (10 + 30) / 2)
    add(3, probes=0.0, search=30.0)  # an engine without a clock
    assert estimate_search(store.log(), 60, 5.0) == pytest.approx(100.0)
    # Probes see as many images of any task, a search all: half the images cost half.
    assert estimate_search(store.log(), 30, 5.0) == pytest.approx(50.0)
    assert estimate_search(store.log(), 30, 5.0, at_most=20.0) == 20.0
    add(4, probes=1.0, search=9.0, n=30)
    assert estimate_search(store.log(), 60, 5.0) == pytest.approx(5.0 * (10 + 30 + 20) / 3)


# --- seen before ------------------------------------------------------------------------------


def test_a_fitted_task_returns_its_outcome_at_once(store: Store) -> None:
    first = make_automl(store).fit(stripes("first"))
    before = store.n_trainings()
    for name in ("first", "renamed"):
        recorder, engine = Recorder(), CountingEngine(store.folder)
        again = make_automl(store, callbacks=[recorder], engine=engine).fit(stripes(name))
        assert again.restored
        assert again.sentence == first.sentence
        assert again.decision == first.decision
        assert again.spec == first.spec
        assert again.test_score == first.test_score
        assert again.entry.name == "first"
        assert recorder.events == [("task_finished", "first")]
        assert engine.executed == []
        assert accuracy(again, stripes()) == first.test_score
    assert store.n_trainings() == before
    assert len(store.log()) == 1


def test_a_model_file_that_has_gone_is_a_store_error(store: Store) -> None:
    make_automl(store, searcher=Found()).fit(stripes())
    outcome = make_automl(store).fit(stripes())
    outcome.model_file.unlink()
    with pytest.raises(StoreError, match="the weights of stripes are not at"):
        _ = outcome.model


# --- failures leave nothing decided -----------------------------------------------------------


def state(store: Store) -> tuple:
    grouper = SETTINGS.grouper()
    for entry in store.log():
        grouper.learn_one(entry.trials, entry.decision)
    return grouper.n_groups, grouper.labels_.tolist(), len(store.log())


class Failing(Found):
    def search(self, task: Task, **_: Any) -> SearchResult:
        raise SearchError("nothing was found", ["a record"])


def test_a_failed_search_decides_nothing_and_can_be_tried_again(store: Store) -> None:
    recorder, engine = Recorder(), CountingEngine(store.folder)
    automl = make_automl(store, searcher=Failing(), callbacks=[recorder], engine=engine)
    with pytest.raises(SearchError) as caught:
        automl.fit(stripes())
    assert caught.value.history == ["a record"]
    assert state(store) == (0, [], 0)
    assert recorder.hooks == ["task_started", "probes_progress", "decided"]
    assert len(engine.executed) == 8, "the probes are paid for"

    automl.searcher = Found()
    outcome = automl.fit(stripes())
    assert outcome.decision == dict(recorder.events)["decided"][0]
    assert state(store) == (1, [0], 1)
    assert len(set(engine.executed)) == len(engine.executed)


class Interrupted(Callbacks):
    """A user's observer that fails at a hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._fail)

    def _fail(self, *_: object) -> None:
        raise ZeroDivisionError("the user's own mistake")


@pytest.mark.parametrize(
    "hook",
    ["task_started", "probes_progress", "decided", "search_progress", "training_progress"],
)
def test_an_error_of_an_observer_comes_through_and_harms_nothing(store: Store, hook: str) -> None:
    make_automl(store, searcher=Found()).fit(stripes("first", seed=7))
    before = state(store)
    engine = CountingEngine(store.folder)
    task = stripes("second", seed=8, noise=150.0)
    automl = make_automl(store, callbacks=[Interrupted(hook)], engine=engine, policy=NeverReuse())
    with pytest.raises(ZeroDivisionError, match="the user's own mistake"):
        automl.fit(task)
    assert state(store) == before
    assert not store.model_file(task.fingerprint).exists()

    automl.callbacks.clear()
    outcome = automl.fit(task)
    assert len(engine.executed) == len(set(engine.executed)), "nothing is trained twice"
    assert len(store.log()) == 2
    assert accuracy(outcome, task) == outcome.test_score


def test_an_error_after_the_end_loses_nothing(store: Store) -> None:
    automl = make_automl(store, searcher=Found(), callbacks=[Interrupted("task_finished")])
    with pytest.raises(ZeroDivisionError):
        automl.fit(stripes())
    assert len(store.log()) == 1
    automl.callbacks.clear()
    assert automl.fit(stripes()).restored


def test_nothing_is_committed_before_the_model_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    automl = make_automl(store, searcher=Found())
    automl.fit(stripes("first", seed=7))
    before = state(store)

    def fail(*_: object) -> None:
        assert len(store.log()) == 1
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "keep_model", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            automl.fit(stripes("second"))
    assert state(store) == before
    assert automl.fit(stripes("second")).entry.position == 1


# --- settings ---------------------------------------------------------------------------------


def test_settings_are_those_of_the_store(store: Store) -> None:
    make_automl(store, settings=Settings(seed=3, probes=2, trials=4, grouping={"gamma": 0.5}))
    again = TransferAutoML(store, engine=LocalEngine(store.folder))
    assert again.settings.seed == 3
    assert again.settings.grouping["gamma"] == 0.5
    assert again.searcher.seed == 3
    assert Settings.of(store) == again.settings
    assert again.settings.grouper().params["seed"] == 3


def test_other_settings_are_refused_and_the_differences_named(store: Store) -> None:
    make_automl(store)
    other = Settings(seed=1, probes=2, trials=5, probe_images=120, grouping={"alpha": 0.01})
    with pytest.raises(InputError) as caught:
        make_automl(store, settings=other)
    message = str(caught.value)
    assert "seed: 0 in the store, 1 wanted" in message
    assert "trials: 4 in the store, 5 wanted" in message
    assert "alpha: 0.005 in the store, 0.01 wanted" in message
    assert "probes:" not in message
    assert "gamma" not in message


def test_defaults_that_are_spelt_out_are_no_difference(store: Store) -> None:
    make_automl(store)
    spelt = Settings(0, 2, 4, 120, {"gamma": 0.2, "alpha": 0.005, "covariance": "trials"})
    assert make_automl(store, settings=spelt).settings == SETTINGS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed >= 0"),
        ({"probes": 0}, "probes >= 1"),
        ({"trials": 0}, "trials >= 1"),
        ({"probe_images": 0}, "probe_images >= 1"),
        ({"probes": 6, "trials": 6}, "more trials than probes, got 6 trials of 6 probes"),
        ({"grouping": {"gamma": -1.0}}, "gamma"),
        ({"grouping": {"covariance": "none"}}, "covariance"),
    ],
)
def test_settings_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**options)


def test_without_the_test_trials_may_be_few() -> None:
    assert Settings(probes=6, trials=2, grouping={"alpha": 0.0}).trials == 2


def test_a_new_store_pilots_its_probes_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(automl_module, "digits", lambda: stripes("easy", noise=20.0))
    engine = CountingEngine(store.folder)
    settings = Settings(seed=2, probes=2, trials=3, probe_images=240)
    automl = TransferAutoML(store, settings=settings, engine=engine)
    with caplog.at_level(logging.INFO, logger="trautoml"):
        suite = automl.suite
    assert "a new store: 2 probes are drawn" in caplog.text
    assert len(suite.probes) == 2
    assert suite.images == 240
    assert engine.executed
    again = TransferAutoML(store, engine=LocalEngine(store.folder))
    monkeypatch.setattr(automl_module, "pilot", None)
    assert again.suite == suite


# --- parts of the user's own ------------------------------------------------------------------


class NeverReuse(ReusePolicy):
    def choose(self, group_specs: Any, trials: np.ndarray, decision: Any) -> ModelSpec | None:
        return None


class Always(ReusePolicy):
    """Asked with what the design promises, it answers with a spec of its own."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def choose(self, group_specs: Any, trials: np.ndarray, decision: Any) -> ModelSpec | None:
        self.asked.append((dict(group_specs), trials.copy(), decision))
        return chain(24)


class OwnEngine:
    """A user's engine of the right shape, without the base class."""

    n_workers = 3
    device = "cpu"

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.n_jobs = 0
        self.closed = False

    def share(self, task: Task) -> SharedTask:
        return SharedTask(task.fingerprint, task=task)

    def release(self, task: Task) -> None:
        pass

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index in reversed(range(len(jobs))):
            self.n_jobs += 1
            yield index, jobs[index].run()

    def close(self) -> None:
        self.closed = True


def test_a_users_own_parts_are_accepted(store: Store) -> None:
    engine, policy, searcher = OwnEngine(store.folder), Always(), Found(chain(16))
    with make_automl(store, engine=engine, policy=policy, searcher=searcher) as automl:
        first = automl.fit(stripes())
        assert first.spec == chain(24)
        assert not first.entry.searched
        assert first.entry.search_estimate == 0.0
        automl.policy = NeverReuse()
        second = automl.fit(stripes(seed=1))
        assert second.spec == chain(16)
        assert second.entry.searched
    assert engine.n_jobs == store.n_trainings()
    assert not engine.closed, "the user's engine is the user's"
    groups, trials, decision = policy.asked[0]
    assert groups == {}
    assert trials.shape == (4, 2)
    assert decision == first.decision


def test_an_engine_that_loses_jobs_is_an_engine_error(store: Store) -> None:
    class Forgetful(OwnEngine):
        def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            for index, job in enumerate(jobs):
                if not job.test:
                    yield index, job.run()

    automl = make_automl(store, engine=Forgetful(store.folder), searcher=Found())
    with pytest.raises(EngineError, match="an engine must run every job"):
        automl.fit(stripes())
    assert store.log() == []


def test_its_own_engine_and_store_are_closed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Engine, "close", lambda _: closed.append("engine"))
    real = Store.close
    monkeypatch.setattr(Store, "close", lambda self: (closed.append("store"), real(self))[1])
    with TransferAutoML(tmp_path / "store", device="cpu"):
        pass
    assert sorted(closed) == ["engine", "store"]
    closed.clear()
    with pytest.raises(InputError):
        TransferAutoML(tmp_path / "store", settings=Settings(seed=9))
    assert closed == ["store"]


def test_a_groups_model_that_diverges_is_not_reused(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Reckless(ReusePolicy):
        def choose(self, group_specs: Any, trials: Any, decision: Any) -> ModelSpec | None:
            return chain(8, learning_rate=1e9) if group_specs else None

    automl = make_automl(store, searcher=Found(chain(16)), policy=Reckless())
    automl.fit(named("first"))
    outcome = automl.fit(named("alike"))
    assert outcome.decision.kind == "joined"
    assert outcome.entry.searched
    assert outcome.spec == chain(16)
    assert outcome.seconds["search"] == outcome.search_estimate == 100.0
    assert "a search is run instead" in caplog.text


def test_a_model_that_diverges_is_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    automl = make_automl(store, searcher=Found(chain(8, learning_rate=1e30)))
    outcome = automl.fit(stripes())
    assert "the model of stripes diverged" in caplog.text
    assert outcome.test_score == pytest.approx(1 / 3)


def test_search_alone_is_the_baseline(store: Store) -> None:
    engine = CountingEngine(store.folder)
    automl = make_automl(store, engine=engine)
    alone = automl.search(stripes())
    assert store.log() == []
    executed = len(engine.executed)
    outcome = automl.fit(stripes())
    assert (outcome.spec, outcome.test_score) == (alone.spec, alone.test_score)
    assert outcome.seconds["search"] == alone.search_seconds
    assert len(engine.executed) == executed + 8, "only the probes were new"
    assert outcome.entry.standalone_seconds == alone.search_seconds + alone.training_seconds


def test_the_outcome_speaks_for_itself(store: Store) -> None:
    outcome = make_automl(store, searcher=Found()).fit(stripes())
    text = repr(outcome)
    assert "stripes is the first task: it opens group 0" in text
    assert f"test accuracy {outcome.test_score:.3f}" in text
    assert outcome.entry.wall_seconds > 0
    shape = outcome.entry.image_shape
    assert load_classifier(outcome.model_file, outcome.spec, shape, 3).training is False


def test_a_searcher_of_another_seed_has_its_winner_trained_once_more(store: Store) -> None:
    engine = CountingEngine(store.folder)
    automl = make_automl(
        store, engine=engine, searcher=HyperbandSearcher(slots=3, seed=SETTINGS.seed + 1)
    )
    recorder = Recorder()
    automl.callbacks.append(recorder)
    outcome = automl.fit(stripes())
    epochs = [epoch for hook, epoch in recorder.events if hook == "training_progress"]
    assert epochs == [(1, BUDGET.epochs), (2, BUDGET.epochs)]  # one by one, as a kill may come
    predicted = outcome.model.predict_proba(stripes().test_images).argmax(1)
    assert np.mean(predicted == stripes().test_labels) == pytest.approx(outcome.test_score)
