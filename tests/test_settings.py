"""The three settings: one stream, the same kinds of decisions, nothing compared across them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from automl_support import CountingEngine, Recorder, stripes

from trautoml import automl as automl_module
from trautoml.automl import TransferAutoML
from trautoml.demo_tasks import digits
from trautoml.errors import InputError
from trautoml.features import FeatureJob
from trautoml.search import SearchBudget
from trautoml.settings import Settings
from trautoml.spaces import CellSpace, ChainSpace
from trautoml.store import Store

BACKBONE = {"name": "squeezenet1_1", "node": "features.4", "side": 16, "weights": "none"}
SETTINGS = {"scratch": {}, "predefined": BACKBONE, "cells": {}}
BUDGET = SearchBudget(trials=2, epochs=1)

# Priors and levels that leave the measured scores no say.
FORCED = {
    "joined": {"gamma": 1e6, "alpha": 0.0},
    "split": {"gamma": 1e6, "alpha": 0.999999},
    "opened": {"gamma": 1e-300, "alpha": 0.0, "sigma0_sq": 1e9},
}


def make_settings(setting: str, **options: Any) -> Settings:
    values = {"probes": 2, "trials": 4, "probe_images": 60} | options
    return Settings(setting=setting, backbone=SETTINGS[setting], **values)


@pytest.fixture(autouse=True)
def _no_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automl_module, "pilot", lambda suite, *_, **__: suite)


def fit_two(folder: Path, settings: Settings, **options: Any) -> list[Any]:
    with (
        Store(folder) as store,
        TransferAutoML(
            store,
            settings=settings,
            budget=BUDGET,
            engine=options.pop("engine", None) or CountingEngine(folder),
            **options,
        ) as automl,
    ):
        return [automl.fit(stripes(f"task {seed}", seed=seed)) for seed in (0, 1)]


@pytest.mark.parametrize("kind", FORCED)
@pytest.mark.parametrize("setting", SETTINGS)
def test_all_kinds_of_decision_in_every_setting(tmp_path: Path, setting: str, kind: str) -> None:
    settings = make_settings(setting, grouping=FORCED[kind])
    first, second = fit_two(tmp_path, settings, searcher="random")
    assert first.decision.kind == "opened"
    assert second.decision.kind == kind
    assert second.entry.searched == (kind != "joined")
    if kind == "joined":
        assert second.spec == first.spec
    architecture = "cells" if setting == "cells" else "chain"
    assert {first.spec.architecture, second.spec.architecture} == {architecture}
    assert ("features" in first.seconds) == (setting == "predefined")


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_takes_images_in_every_setting(tmp_path: Path, setting: str) -> None:
    outcome, _ = fit_two(tmp_path, make_settings(setting), searcher="random")
    task = stripes("task 0", seed=0)
    assert outcome.entry.image_shape == task.image_shape
    predicted = outcome.model.predict_proba(task.test_images).argmax(1)
    assert np.mean(predicted == task.test_labels) == pytest.approx(outcome.test_score)


def test_probes_come_from_the_settings_own_space(tmp_path: Path) -> None:
    for setting, architecture in (("cells", "cells"), ("predefined", "chain")):
        folder = tmp_path / setting
        with TransferAutoML(
            folder, settings=make_settings(setting), engine=CountingEngine(folder)
        ) as automl:
            assert {probe.architecture for probe in automl.suite.probes} == {architecture}
    assert isinstance(make_settings("cells").space(), CellSpace)
    assert isinstance(make_settings("predefined").space(), ChainSpace)


# --- a store has one setting ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "difference"),
    [
        (make_settings("scratch"), "setting: predefined in the store, scratch wanted"),
        (make_settings("cells"), "setting: predefined in the store, cells wanted"),
        (
            Settings(
                probes=2,
                trials=4,
                probe_images=60,
                setting="predefined",
                backbone=BACKBONE | {"node": "features.6"},
            ),
            "backbone node: features.4 in the store, features.6 wanted",
        ),
    ],
)
def test_a_store_never_compares_across_settings(
    tmp_path: Path, wanted: Settings, difference: str
) -> None:
    made = make_settings("predefined")
    with TransferAutoML(tmp_path, settings=made, engine=CountingEngine(tmp_path)):
        pass
    with pytest.raises(InputError, match=difference):
        TransferAutoML(tmp_path, settings=wanted, engine=CountingEngine(tmp_path))
    with TransferAutoML(tmp_path, engine=CountingEngine(tmp_path)) as automl:
        assert automl.settings == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "clouds"}, "settings scratch, predefined, cells, got 'clouds'"),
        ({"backbone": BACKBONE}, "belongs to the setting predefined, but the setting is scratch"),
        ({"setting": "cells", "backbone": BACKBONE}, "but the setting is cells"),
        ({"setting": "predefined", "backbone": {"depth": 3}}, r"got \['depth'\]"),
        ({"setting": "predefined", "backbone": {"side": 0}}, "side of a backbone"),
    ],
)
def test_settings_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**options)


def test_what_is_wrong_with_a_setting_shows_before_it_is_fixed(tmp_path: Path) -> None:
    bad = Settings(setting="predefined", backbone=BACKBONE | {"node": "features.99"})
    with pytest.raises(InputError, match=r"features\.99"):
        TransferAutoML(tmp_path, settings=bad)
    with pytest.raises(InputError, match="no searcher 'magic'"):
        TransferAutoML(tmp_path, settings=make_settings("scratch"), searcher="magic")
    with pytest.raises(InputError, match="enas searches cells, but this store is for chains"):
        TransferAutoML(tmp_path, settings=make_settings("scratch"), searcher="enas")
    with TransferAutoML(
        tmp_path, settings=make_settings("cells"), engine=CountingEngine(tmp_path)
    ) as automl:
        assert automl.settings.setting == "cells"


def told(recorder: Recorder) -> list[Any]:
    return [event for event in recorder.events if event[0] == "features_progress"]


# --- features ---------------------------------------------------------------------------------


class FeatureCountingEngine(CountingEngine):
    """Counts jobs that compute features, and is interrupted before the n-th if asked to be."""

    def __init__(self, workspace: Path, stop_before: int | None = None) -> None:
        super().__init__(workspace)
        self.features: list[str] = []
        self._stop_before = stop_before

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            if isinstance(job, FeatureJob):
                if len(self.features) == self._stop_before:
                    raise KeyboardInterrupt
                self.features.append(job.key)
            yield index, job.run()


def test_features_are_computed_once_for_probes_search_and_training(tmp_path: Path) -> None:
    engine, recorder = FeatureCountingEngine(tmp_path), Recorder()
    outcomes = fit_two(tmp_path, make_settings("predefined"), engine=engine, callbacks=[recorder])
    # Blocks of 256 images: one for each split of the two tasks, the digits before them have nine.
    assert len(engine.features) == len(set(engine.features)) == 3 + 3 + 9
    assert sum(done == total for hook, (done, total) in told(recorder)) == 3
    assert all(outcome.seconds["features"] > 0 for outcome in outcomes)
    assert not list((tmp_path / "features").glob("*"))  # nothing is left behind


def test_the_task_that_probes_are_piloted_on_may_come_first(tmp_path: Path) -> None:
    engine = FeatureCountingEngine(tmp_path)
    with TransferAutoML(
        tmp_path, settings=make_settings("predefined"), budget=BUDGET, engine=engine
    ) as automl:
        outcome = automl.fit(digits())
    assert outcome.decision.kind == "opened"
    assert not list((tmp_path / "features").glob("*"))
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_interrupted_features_go_on_where_they_stopped(tmp_path: Path) -> None:
    settings = make_settings("predefined")
    whole = fit_two(tmp_path / "whole", settings, engine=FeatureCountingEngine(tmp_path / "whole"))
    folder = tmp_path / "cut"
    first = FeatureCountingEngine(folder, stop_before=4)
    with pytest.raises(KeyboardInterrupt):
        fit_two(folder, settings, engine=first)
    second = FeatureCountingEngine(folder)
    outcomes = fit_two(folder, settings, engine=second)
    assert not set(first.features) & set(second.features)
    assert [o.decision for o in outcomes] == [o.decision for o in whole]
    assert [(o.spec, o.test_score) for o in outcomes] == [(o.spec, o.test_score) for o in whole]
