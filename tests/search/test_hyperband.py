import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import optuna
import pytest
from automl_support import CountingEngine, ScriptedEngine, chain, scored, stripes
from optuna.trial import TrialState

from trautoml.engine import Engine, LocalEngine, WorkerEngine
from trautoml.errors import InputError, SearchError
from trautoml.jobs import TrainingResult
from trautoml.recording import RecordingEngine
from trautoml.search import (
    HyperbandSearcher,
    SearchBudget,
    SearchProgress,
    SearchResult,
    TrialRecord,
)
from trautoml.spaces import ChainSpace, RandomChoice
from trautoml.spec import ModelSpec
from trautoml.store import Store
from trautoml.task import Task

Script = Callable[[ModelSpec, float], TrainingResult]
TIME = 60.0


def quality(spec: ModelSpec) -> float:
    """A fixed merit of every spec in (0, 1), as good as random."""
    return int(spec.digest, 16) / 16**16


def steady(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Score candidates in the same order at every budget."""
    return scored(quality(spec) * (1 - 0.5 / epochs), epochs, seconds=epochs)


def choices(number: int, seed: int = 1) -> dict:
    """Draw a candidate's choices the way that is promised to everybody."""
    choice = RandomChoice(np.random.default_rng([seed, 0, number]))
    ChainSpace().define(choice)
    return choice.params


def spec_of(number: int) -> ModelSpec:
    """Build a candidate of the choices that it is known by."""
    return ChainSpace().define(optuna.trial.FixedTrial(choices(number)))


def essence(result: SearchResult) -> tuple:
    """All of a result but the seconds."""
    history = [(r.trial, r.spec, r.epochs, r.score, r.diverged) for r in result.history]
    return result.spec, result.score, history


def search(
    engine: Engine,
    *,
    trials: int = 12,
    epochs: int = 9,
    task: Task | None = None,
    **options: object,
) -> SearchResult:
    searcher = HyperbandSearcher(**{"seed": 1, "slots": 4} | options)
    return searcher.search(
        task or stripes(), budget=SearchBudget(trials=trials, epochs=epochs), engine=engine
    )


# --- rungs and candidates ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "eta", "rungs"),
    [
        (1, 3, [1]),
        (2, 3, [2]),
        (3, 3, [1, 3]),
        (9, 3, [1, 3, 9]),
        (10, 3, [1, 3, 10]),
        (27, 3, [1, 3, 9, 27]),
        (8, 2, [1, 2, 4, 8]),
        (7, 2, [1, 2, 7]),
    ],
)
def test_rungs(epochs: int, eta: int, rungs: list[int]) -> None:
    assert HyperbandSearcher(reduction_factor=eta).rungs(epochs) == rungs


@pytest.mark.parametrize("options", [{"reduction_factor": 1}, {"slots": 0}])
def test_parameters_out_of_range(options: dict) -> None:
    with pytest.raises(InputError, match="reduction_factor >= 2 and slots >= 1"):
        HyperbandSearcher(**options)


@pytest.mark.parametrize("options", [{"trials": 0}, {"epochs": 0}, {"seconds": 0.0}])
def test_an_empty_budget_is_refused(options: dict) -> None:
    with pytest.raises(InputError, match="at least one trial and one epoch"):
        SearchBudget(**options)


def test_searches_on_different_tasks_see_the_same_candidates() -> None:
    specs = []
    for seed in (0, 1):
        result = search(ScriptedEngine(steady), task=stripes(seed=seed))
        specs.append({r.trial: r.spec for r in result.history})
    assert specs[0] == specs[1]
    assert sorted(specs[0]) == list(range(12))
    for number, spec in specs[0].items():
        assert spec_of(number) == spec


# --- the race ---------------------------------------------------------------------------------


def test_every_score_at_every_budget_is_in_the_history() -> None:
    engine = ScriptedEngine(steady, shuffle=0)
    result = search(engine)
    assert Counter((job.spec, job.epochs) for job in engine.jobs) == Counter(
        (record.spec, record.epochs) for record in result.history
    )
    assert len({(r.trial, r.epochs) for r in result.history}) == len(result.history)
    assert result.seconds == sum(record.seconds for record in result.history)
    by_trial: dict[int, list[float]] = {}
    for record in result.history:
        by_trial.setdefault(record.trial, []).append(record.epochs)
        assert record.score == steady(record.spec, record.epochs).score
    assert all(seen == [1, 3, 9][: len(seen)] for seen in by_trial.values())


def test_most_candidates_are_stopped_early_and_the_best_is_not() -> None:
    result = search(ScriptedEngine(steady), trials=27)
    pieces = Counter(record.epochs for record in result.history)
    assert pieces[1] == 27
    assert 1 <= pieces[9] < pieces[3] < pieces[1]
    best = max({record.spec for record in result.history}, key=quality)
    assert result.spec == best
    assert result.score == max(record.score for record in result.history)


def fill(epochs: int, trials: int) -> list[int]:
    """Assign trials to brackets one by one, always where the share is filled the least."""
    s_max = max(s for s in range(20) if 3**s <= epochs)
    sizes = {
        b: math.ceil(Fraction((s_max + 1) * 3 ** (s_max - b), s_max - b + 1))
        for b in range(s_max + 1)
    }
    filled = dict.fromkeys(sizes, 0)
    brackets = []
    for _ in range(trials):
        if filled == sizes:
            filled = dict.fromkeys(sizes, 0)
        bracket = min(sizes, key=lambda b: (Fraction(2 * filled[b] + 1, 2 * sizes[b]), b))
        filled[bracket] += 1
        brackets.append(bracket)
    return brackets


def brackets_of(records: Iterable[TrialRecord], epochs: int) -> dict[int, list[TrialRecord]]:
    """Sort records by their brackets; without warm starts, trials are numbered as they start."""
    brackets = fill(epochs, 200)
    found: dict[int, list[TrialRecord]] = {}
    for record in records:
        found.setdefault(brackets[record.trial], []).append(record)
    return found


def best_third(records: list[TrialRecord]) -> set[int]:
    ranked = sorted(records, key=lambda r: (r.diverged, -r.score, r.trial))
    best = ranked[: max(1, len(ranked) // 3)]
    return {record.trial for record in best if not record.diverged}


def noisy(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Score candidates in another order at every budget."""
    return scored(quality(spec) * 7919 * epochs % 1, epochs)


def coarse(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Score many candidates alike."""
    return scored(round(noisy(spec, epochs).score * 3) / 3, epochs)


def fragile(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Let two candidates in three diverge, at chance level or above many sound ones."""
    return scored(noisy(spec, epochs).score, epochs, diverged=int(spec.digest, 16) % 3 > 0)


# Li et al. 2018 (JMLR 18), Table 1: n_i candidates at r_i epochs in bracket s; R = 81, eta = 3.
PUBLISHED = {
    4: {1: 81, 3: 27, 9: 9, 27: 3, 81: 1},
    3: {3: 34, 9: 11, 27: 3, 81: 1},
    2: {9: 15, 27: 5, 81: 1},
    1: {27: 8, 81: 2},
    0: {81: 5},
}


@pytest.mark.parametrize("script", [steady, noisy])
def test_brackets_and_rungs_are_those_of_the_published_table(script: Script) -> None:
    history = search(ScriptedEngine(script), trials=143, epochs=81, slots=143).history
    found = brackets_of(history, 81)
    for s, expected in PUBLISHED.items():
        reached = Counter(int(record.epochs) for record in found[4 - s])
        # Those of a bracket that starts later go through the earlier rungs and are not judged.
        assert {r: n for r, n in reached.items() if r >= min(expected)} == expected
        assert all(n == expected[min(expected)] for r, n in reached.items() if r < min(expected))


@pytest.mark.parametrize("script", [steady, noisy, coarse, fragile])
@pytest.mark.parametrize("n_workers", [1, 4])
@pytest.mark.parametrize("epochs", [3, 9, 10, 27])
def test_the_best_third_of_every_bracket_and_rung_goes_on(
    epochs: int, n_workers: int, script: Script
) -> None:
    engine = ScriptedEngine(script, n_workers=n_workers, shuffle=n_workers)
    history = search(engine, trials=27, epochs=epochs, slots=27).history
    rungs = HyperbandSearcher().rungs(epochs)
    for rung, after in itertools.pairwise(rungs):
        reached = {r.trial for r in history if r.epochs == after}
        for bracket, records in brackets_of(history, epochs).items():
            here = [r for r in records if r.epochs == rung]
            if rung < 3**bracket:
                expected = {r.trial for r in here if not r.diverged}
            else:
                expected = best_third(here)
            assert reached & {r.trial for r in here} == expected, (bracket, rung)


@pytest.mark.parametrize(
    ("epochs", "counts"),
    [
        (9, {0: [14, 4, 1], 1: [8, 8, 2], 2: [5, 5, 5]}),
        (27, {0: [15, 5, 1, 1], 1: [7, 7, 2, 1], 2: [3, 3, 3, 1], 3: [2, 2, 2, 2]}),
    ],
)
def test_how_many_reach_each_rung(epochs: int, counts: dict) -> None:
    history = search(ScriptedEngine(steady), trials=27, epochs=epochs, slots=27).history
    assert {
        bracket: list(Counter(record.epochs for record in records).values())
        for bracket, records in brackets_of(history, epochs).items()
    } == counts


@pytest.mark.parametrize("script", [steady, noisy])
def test_with_rounds_of_one_a_bracket_is_optunas_successive_halving(script: Script) -> None:
    found = search(ScriptedEngine(script), trials=60, epochs=27, slots=1).history
    brackets = fill(27, 60)
    studies = {
        b: optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=3, min_early_stopping_rate=b
            ),
        )
        for b in set(brackets)
    }
    expected = []
    for number, bracket in enumerate(brackets):
        trial = studies[bracket].ask()
        for epochs in (1, 3, 9, 27):
            score = script(spec_of(number), epochs).score
            expected.append((number, epochs, score))
            trial.report(score, epochs)
            if trial.should_prune():
                break
    assert [(r.trial, r.epochs, r.score) for r in found] == expected


def test_later_rounds_are_compared_with_the_earlier_ones_too() -> None:
    # Those of the second round are better, or worse, than all nine of the first.
    first = {spec_of(number) for number in range(9)}
    halving = [number for number, bracket in enumerate(fill(3, 13)) if bracket == 0]
    early, late = (sum(inside(n) for n in halving) for inside in ((9).__gt__, (9).__le__))
    for of_second, going_on in ((0.4, min(late, len(halving) // 3)), (-0.4, 0)):
        engine = ScriptedEngine(
            lambda spec, e, extra=of_second: scored(
                0.5 + 0.1 * quality(spec) + (0.0 if spec in first else extra), e
            )
        )
        history = search(engine, trials=13, epochs=3, slots=9).history
        promoted = [r.trial for r in history if r.epochs == 3 and r.trial in halving]
        assert sum(trial < 9 for trial in promoted) == early // 3
        assert sum(trial >= 9 for trial in promoted) == going_on


def test_with_one_epoch_every_candidate_is_trained_once() -> None:
    assert len(search(ScriptedEngine(steady), trials=5, epochs=1).history) == 5


@pytest.mark.parametrize("shuffle", [None, 1, 2])
@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_the_result_does_not_depend_on_who_is_faster(n_workers: int, shuffle: int | None) -> None:
    expected = search(ScriptedEngine(steady))
    found = search(ScriptedEngine(steady, n_workers=n_workers, shuffle=shuffle))
    assert essence(found) == essence(expected)


def test_progress_is_told_after_every_training() -> None:
    told: list[SearchProgress] = []
    result = HyperbandSearcher(slots=4).search(
        stripes(),
        budget=SearchBudget(trials=10, epochs=3, seconds=1e6),
        engine=ScriptedEngine(steady, n_workers=2, shuffle=0),
        callback=told.append,
    )
    assert len(told) == len(result.history)
    assert [p.seconds for p in told] == sorted(p.seconds for p in told)
    assert told[-1].seconds == result.seconds
    assert told[-1].best.score == result.score
    assert all(1 <= p.done <= p.trainings <= p.started <= p.allowed == 10 for p in told)
    for _, group in itertools.groupby(told, key=lambda p: p.round):
        of_round = list(group)
        assert [p.done for p in of_round] == list(range(1, of_round[0].trainings + 1))
    assert [p.epoch for p in told if p.round == 1] == [1, 1, 1, 1]
    assert (told[-1].epoch, told[-1].epochs) == (3, 3)
    assert all(a.best.score <= b.best.score for a, b in itertools.pairwise(told))
    assert {p.allowed_seconds for p in told} == {2e6}


def test_without_a_time_limit_none_is_told() -> None:
    told: list[SearchProgress] = []
    HyperbandSearcher().search(
        stripes(),
        budget=SearchBudget(2, 1),
        engine=ScriptedEngine(steady),
        callback=told.append,
    )
    assert {p.allowed_seconds for p in told} == {None}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_the_time_budget_ends_the_search(n_workers: int) -> None:
    # Trainings of 5 s in rounds of 4; the time of one worker runs out in the midst of a round.
    engine = ScriptedEngine(
        lambda spec, e: scored(quality(spec), e, seconds=5), n_workers=n_workers
    )
    result = HyperbandSearcher(slots=4).search(
        stripes(), budget=SearchBudget(trials=10**6, epochs=1, seconds=50), engine=engine
    )
    assert len(result.history) == {1: 10, 2: 20}[n_workers]


def test_warm_starts_are_trained_first_and_can_win() -> None:
    champion = chain(24)
    engine = ScriptedEngine(
        lambda spec, e: scored(0.99 if spec == champion else 0.5 * quality(spec), e)
    )
    result = HyperbandSearcher(slots=4).search(
        stripes(),
        budget=SearchBudget(trials=6, epochs=3),
        engine=engine,
        warm_start=[chain(16), champion],
    )
    assert [job.spec for job in engine.jobs[:2]] == [chain(16), champion]
    assert result.spec == champion
    assert sorted({record.trial for record in result.history}) == [-2, -1, 0, 1, 2, 3]


def test_more_warm_starts_than_trials_are_all_tried() -> None:
    warm = [chain(8 * width) for width in range(1, 5)]
    result = HyperbandSearcher(slots=9).search(
        stripes(), budget=SearchBudget(2, 1), engine=ScriptedEngine(steady), warm_start=warm
    )
    assert {record.spec for record in result.history} == set(warm)


def test_warm_starts_do_not_shift_the_sequence() -> None:
    plain = search(ScriptedEngine(steady), trials=3, epochs=1)
    warm = HyperbandSearcher(seed=1).search(
        stripes(),
        budget=SearchBudget(4, 1),
        engine=ScriptedEngine(steady),
        warm_start=[chain()],
    )
    assert [r.spec for r in warm.history[1:]] == [r.spec for r in plain.history]


# --- divergence -------------------------------------------------------------------------------


def test_if_all_diverge_the_error_carries_the_history() -> None:
    engine = ScriptedEngine(lambda _, e: scored(1 / 3, e, diverged=True))
    with pytest.raises(SearchError, match="all 5 candidates of the search on stripes") as caught:
        search(engine, trials=5)
    assert len(caught.value.history) == 5
    assert all(isinstance(record, TrialRecord) for record in caught.value.history)
    assert {job.epochs for job in engine.jobs} == {1}, "a diverged candidate is given up"


def test_a_diverged_candidate_never_wins() -> None:
    # Chance can be above what a poor candidate reaches.
    searcher = HyperbandSearcher(seed=1)
    sound = spec_of(2)
    engine = ScriptedEngine(
        lambda spec, e: scored(0.2, e) if spec == sound else scored(1 / 3, e, diverged=True)
    )
    told: list[SearchProgress] = []
    result = searcher.search(
        stripes(), budget=SearchBudget(5, 3), engine=engine, callback=told.append
    )
    assert result.spec == sound
    assert result.score == 0.2
    assert told[-1].best.spec == sound


def test_a_candidate_that_diverges_later_does_not_win_by_its_first_score() -> None:
    # The final training goes the same way as the search's: it would diverge again.
    searcher = HyperbandSearcher(seed=1)
    brittle = spec_of(0)

    def script(spec: ModelSpec, epochs: float) -> TrainingResult:
        if spec == brittle:
            return scored(0.95 if epochs == 1 else 1 / 3, epochs, diverged=epochs > 1)
        return scored(0.5, epochs)

    result = searcher.search(stripes(), budget=SearchBudget(5, 3), engine=ScriptedEngine(script))
    assert any(r.spec == brittle and r.diverged for r in result.history)
    assert result.spec != brittle


# --- Optuna's records -------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def test_optuna_keeps_the_study_in_the_stores_database(store: Store) -> None:
    told = optuna.logging.get_verbosity()
    result = search(ScriptedEngine(steady), trials=6, epochs=3, storage=store.url)
    assert optuna.logging.get_verbosity() == told
    storage = optuna.storages.RDBStorage(store.url)
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert name == f"hyperband {stripes().fingerprint[:16]}"
    for number, trial in enumerate(study.trials):
        records = [record for record in result.history if record.trial == number]
        assert trial.params == choices(number)
        assert trial.intermediate_values == {int(r.epochs): r.score for r in records}
        assert ModelSpec.from_json(trial.user_attrs["spec"]) == records[0].spec
        complete = records[-1].epochs == 3
        assert trial.state == (TrialState.COMPLETE if complete else TrialState.PRUNED)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    storage.remove_session()
    storage.engine.dispose()
    assert store.log() == []


def test_a_search_repeated_over_a_store_trains_nothing_again(store: Store) -> None:
    inner = CountingEngine(store.folder)
    engine = RecordingEngine(inner, store)
    options = {"trials": 4, "epochs": 2, "storage": store.url}

    # First it is interrupted, as by a kill: the study stays behind with trials that run.
    def interrupt(progress: SearchProgress) -> None:
        if progress.started == 4 and len(inner.executed) == 3:
            raise KeyboardInterrupt

    searcher = HyperbandSearcher(seed=1, slots=4, storage=store.url)
    with pytest.raises(KeyboardInterrupt):
        searcher.search(stripes(), budget=SearchBudget(4, 2), engine=engine, callback=interrupt)
    assert store.n_trainings() == 3

    first = search(engine, **options)
    executed = list(inner.executed)
    assert len(executed) == len(set(executed)) == len(first.history) == store.n_trainings()
    second = search(engine, **options)
    assert inner.executed == executed
    assert second == first
    with LocalEngine() as undisturbed:
        assert essence(first) == essence(search(undisturbed, trials=4, epochs=2))


def uneven(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Take another time for every training, so that sums depend on the order."""
    return scored(noisy(spec, epochs).score, epochs, seconds=0.1 + quality(spec) ** 4 * 5 * epochs)


def timed(
    engine: Engine,
    store: Store,
    callback: Callable[[SearchProgress], None] | None = None,
) -> SearchResult:
    return HyperbandSearcher(slots=9).search(
        stripes(),
        budget=SearchBudget(trials=60, epochs=9, seconds=TIME),
        engine=RecordingEngine(engine, store),
        callback=callback,
    )


@pytest.mark.parametrize("shuffle", range(6))
def test_a_search_that_ran_out_of_time_is_repeated_with_the_same_winner(
    store: Store, shuffle: int
) -> None:
    first = timed(ScriptedEngine(uneven, shuffle=shuffle), store)
    assert 0 < store.n_trainings() == len(first.history)
    assert first.seconds >= TIME
    again = ScriptedEngine(uneven, shuffle=shuffle + 1)
    assert timed(again, store) == first
    assert again.jobs == []
    # Twice the workers: there is time left, and what is known stays known.
    more = timed(ScriptedEngine(uneven, n_workers=2), store)
    assert set(first.history) < set(more.history)
    # Half of them: the time is over early, but results of later rounds are there.
    fewer = ScriptedEngine(uneven)
    assert timed(fewer, store) == more
    assert fewer.jobs == []


@pytest.mark.parametrize("kill", range(1, 28, 3))
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


def test_the_log_level_is_restored_after_an_error() -> None:
    told = optuna.logging.get_verbosity()

    def fail(_: object, __: float) -> TrainingResult:
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        search(ScriptedEngine(fail))
    assert optuna.logging.get_verbosity() == told


# --- on real trainings ------------------------------------------------------------------------


def test_one_worker_two_workers_and_this_process_find_the_same() -> None:
    found = []
    for engine in (LocalEngine(), WorkerEngine(1), WorkerEngine(2)):
        with engine:
            found.append(essence(search(engine, trials=5, epochs=2)))
    assert found[0] == found[1] == found[2]
    assert not any(math.isnan(score) for _, score, _ in found)


def test_it_learns_and_beats_the_first_random_candidate(tiny_task: Task) -> None:
    with LocalEngine() as engine:
        result = search(engine, task=tiny_task, trials=8, epochs=4, seed=0)
    first = max(record.score for record in result.history if record.trial == 0)
    assert result.score > max(first, 0.8)
