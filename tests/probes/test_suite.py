import json

import numpy as np
import pytest
from automl_support import SUITE, ScriptedEngine, scored, stripes

from trautoml.engine import LocalEngine, WorkerEngine
from trautoml.errors import InputError
from trautoml.probes import ProbeSuite
from trautoml.probes.suite import draw_probe
from trautoml.spaces import ChainSpace


def test_the_same_seed_gives_the_same_suite() -> None:
    assert ProbeSuite.sample(5, seed=7) == ProbeSuite.sample(5, seed=7)
    assert ProbeSuite.sample(5, seed=7) != ProbeSuite.sample(5, seed=8)


def test_a_larger_suite_begins_with_the_smaller() -> None:
    assert ProbeSuite.sample(8, seed=3).probes[:5] == ProbeSuite.sample(5, seed=3).probes


def test_the_defaults_are_those_of_the_paper_and_the_store() -> None:
    suite = ProbeSuite.sample()
    assert len(suite.probes) == 6
    assert suite.images == 4000
    assert suite.probes[4] == draw_probe(ChainSpace(), 0, 4)


@pytest.mark.parametrize(("n", "images"), [(0, 10), (3, 0)])
def test_an_empty_suite_is_refused(n: int, images: int) -> None:
    with pytest.raises(InputError, match="at least one probe and at least one image"):
        ProbeSuite.sample(n, images=images)


def test_json_round_trip_through_text() -> None:
    suite = ProbeSuite.sample(4, seed=1, images=321)
    assert ProbeSuite.from_json(json.loads(json.dumps(suite.to_json(), allow_nan=False))) == suite


def test_measure_puts_every_result_in_its_place_whatever_the_order() -> None:
    task = stripes()
    cells = {probe: 0.1 * (1 + b) for b, probe in enumerate(SUITE.probes)}
    results = []
    for shuffle in (None, 1, 2):
        engine = ScriptedEngine(
            lambda spec, epochs: scored(cells[spec], epochs, seconds=2 * cells[spec]),
            shuffle=shuffle,
        )
        calls: list[tuple[int, int]] = []
        measured = SUITE.measure(
            task, 3, engine=engine, callback=lambda *call, calls=calls: calls.append(call)
        )
        assert calls == [(done, 6) for done in range(1, 7)]
        results.append(measured)
    for measured in results:
        np.testing.assert_array_equal(measured.trials, np.tile([0.1, 0.2], (3, 1)))
        np.testing.assert_array_equal(measured.seconds, np.tile([0.2, 0.4], (3, 1)))
        assert measured.trials.dtype == measured.seconds.dtype == np.float64


def test_scores_are_accuracies_above_chance_and_cost_time() -> None:
    measured = SUITE.measure(stripes(), 3)
    assert measured.trials.shape == measured.seconds.shape == (3, 2)
    assert ((measured.trials >= 0) & (measured.trials <= 1)).all()
    assert measured.trials.mean() > 0.5  # chance is a third
    assert (measured.seconds > 0).all()
    assert len(np.unique(measured.trials[:, 0])) > 1, "each trial draws its own weights"


def test_local_and_worker_engine_measure_the_same() -> None:
    task = stripes()
    with LocalEngine() as local, WorkerEngine(2) as workers:
        here = SUITE.measure(task, 2, engine=local)
        there = SUITE.measure(task, 2, engine=workers)
    np.testing.assert_array_equal(here.trials, there.trials)


def jobs_of(task_seed: int, trials: int = 3) -> list:
    engine = ScriptedEngine(lambda _, epochs: scored(0.5, epochs))
    SUITE.measure(stripes(seed=task_seed, n=60), trials, engine=engine)
    return engine.jobs


def test_trials_tasks_and_probes_draw_apart() -> None:
    # The test takes trials of two tasks as independent: a shared seed would pair them.
    seeds = [job.seed for task_seed in (0, 1) for job in jobs_of(task_seed)]
    assert len(set(seeds)) == len(seeds) == 12


def test_more_trials_keep_the_first_ones() -> None:
    few, many = jobs_of(0, trials=2), jobs_of(0, trials=3)
    assert [job.key for job in few] == [job.key for job in many[: len(few)]]


@pytest.mark.parametrize(("n", "epochs"), [(30, 4.0), (60, 2.0), (240, 0.5)])
def test_a_trial_sees_as_many_images_of_every_task(n: int, epochs: float) -> None:
    engine = ScriptedEngine(lambda _, done: scored(0.5, done))
    SUITE.measure(stripes(n=n), 1, engine=engine)
    assert {job.epochs for job in engine.jobs} == {epochs}


def test_no_trials_are_refused() -> None:
    with pytest.raises(InputError, match="at least one trial"):
        SUITE.measure(stripes(), 0)
