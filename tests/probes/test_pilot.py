import logging

import pytest
from automl_support import ScriptedEngine, chain, scored, stripes

from trautoml.engine import LocalEngine
from trautoml.errors import InputError
from trautoml.probes import ProbeSuite, pilot
from trautoml.probes.suite import draw_probe
from trautoml.spaces import SearchSpace
from trautoml.spaces._base import Choice
from trautoml.spec import ModelSpec


class PartlyDull(SearchSpace):
    """Every other draw, or so, can't learn: its learning rate is next to nothing."""

    name = "partly-dull"

    def define(self, choice: Choice) -> ModelSpec:
        scale = 1e-9 if choice.suggest_categorical("dull", [True, False]) else 1.0
        rate = choice.suggest_float("learning_rate", 0.05, 0.2, log=True)
        return chain(8 * choice.suggest_int("width", 1, 4), learning_rate=scale * rate)


class Dull(SearchSpace):
    name = "dull"

    def define(self, choice: Choice) -> ModelSpec:
        return chain(8 * choice.suggest_int("width", 1, 4), learning_rate=1e-9)


def is_dull(probe: ModelSpec) -> bool:
    return probe.hyper.learning_rate < 1e-6


def piloted(seed: int = 0, n: int = 4) -> tuple[ProbeSuite, ProbeSuite]:
    space = PartlyDull()
    suite = ProbeSuite.sample(n, seed=seed, space=space, images=240)
    with LocalEngine() as engine:
        found = pilot(suite, stripes(), space=space, seed=seed, engine=engine)
    return suite, found


def test_dull_probes_are_drawn_again_and_good_ones_stay(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="trautoml"):
        before, after = piloted()
    dull = [is_dull(probe) for probe in before.probes]
    assert any(dull)
    assert not all(dull)
    assert not any(is_dull(probe) for probe in after.probes)
    for was_dull, old, new in zip(dull, before.probes, after.probes, strict=True):
        assert was_dull == (old != new)
    assert after.images == before.images
    first = dull.index(True)
    assert f"probe {first} hardly learns on stripes" in caplog.text
    assert "drawn again" in caplog.text
    assert len(caplog.records) >= sum(dull)


def test_the_pilot_is_deterministic_and_goes_on_in_the_sequence() -> None:
    before, after = piloted(seed=2)
    assert piloted(seed=2)[1] == after
    later = [draw_probe(PartlyDull(), 2, index) for index in range(4, 40)]
    replaced = [new for old, new in zip(before.probes, after.probes, strict=True) if old != new]
    assert all(probe in later for probe in replaced)


def test_a_suite_that_learns_is_left_alone() -> None:
    suite = ProbeSuite((chain(8), chain(16)), images=240)
    with LocalEngine() as engine:
        found = pilot(suite, stripes(), space=Dull(), seed=0, engine=engine)
    assert found == suite


def test_only_the_new_draws_are_tried_again() -> None:
    space = PartlyDull()
    suite = ProbeSuite.sample(4, seed=0, space=space, images=60)
    engine = ScriptedEngine(
        lambda spec, epochs: scored(1 / 3 if is_dull(spec) else 0.9, epochs), shuffle=0
    )
    found = pilot(suite, stripes(), space=space, seed=0, engine=engine)
    tried = [job.spec for job in engine.jobs]
    assert all(tried.count(probe) == 2 for probe in set(suite.probes) | set(found.probes))


def test_a_probe_at_a_quarter_of_the_way_is_still_dull() -> None:
    task = stripes()
    bar = task.chance + 0.25 * (1 - task.chance)
    suite = ProbeSuite((chain(8),), images=60)
    for score, stays in ((bar, False), (bar + 1e-9, True)):
        engine = ScriptedEngine(
            lambda spec, epochs, score=score: scored(score if spec == chain(8) else 1.0, epochs)
        )
        found = pilot(suite, task, space=PartlyDull(), seed=0, engine=engine)
        assert (found == suite) == stays


def test_a_space_that_never_learns_is_an_error_after_twenty_rounds() -> None:
    suite = ProbeSuite.sample(2, space=Dull(), images=60)
    engine = ScriptedEngine(lambda _, epochs: scored(1 / 3, epochs))
    with pytest.raises(InputError, match="after 20 draws, 2 probes still learn nothing on stripes"):
        pilot(suite, stripes(), space=Dull(), seed=0, engine=engine)
    assert len(engine.jobs) == 20 * 2 * 2
