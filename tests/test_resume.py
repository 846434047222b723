import signal
import subprocess
import sys
from pathlib import Path

import pytest
import resume_driver
from safetensors.numpy import load_file

from trautoml import automl
from trautoml.store import Store

KILLS = [
    "trainings:3",  # while the new suite is piloted
    "probes_progress:5",
    "search_progress:2",
    "training_progress:1",
    "before-outcome:1",
    "after-outcome:1",
    "search_progress:4",  # of the second task
    "search_progress:5",  # of the same one, when its time is over
    "none",
]


def outcomes(folder: Path) -> tuple[list[tuple], list[str], dict[str, dict]]:
    """All that a run ends with but its times: the log, the trainings run and the models."""
    with Store(folder / "store") as store:
        log = [
            (e.name, e.decision, e.trials.tolist(), e.spec, e.score, e.test_score, e.searched)
            for e in store.log()
        ]
        executed = (folder / "executed.txt").read_text().split()
        assert store.n_trainings() == len(set(executed))
        models = {
            e.name: {
                name: array.tobytes()
                for name, array in load_file(store.model_file(e.fingerprint)).items()
            }
            for e in store.log()
        }
    return log, executed, models


def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    killed.mkdir()
    undisturbed.mkdir()
    done = 0
    for point in KILLS:
        driver = [sys.executable, resume_driver.__file__, str(killed), point]
        ended = subprocess.run(driver, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == (0 if point == "none" else -signal.SIGKILL), ended.stderr
        executed = (killed / "executed.txt").read_text().split()
        assert len(executed) >= done
        assert len(set(executed)) == len(executed), f"a training was run twice after {point}"
        done = len(executed)

    monkeypatch.setattr(automl, "digits", automl.digits)  # the driver replaces it
    resume_driver.main(undisturbed, "none")
    log, executed, models = outcomes(killed)
    expected_log, expected_executed, expected_models = outcomes(undisturbed)
    assert [name for name, *_ in log] == list(resume_driver.TASKS)
    assert log == expected_log
    assert sorted(executed) == sorted(expected_executed)
    assert models == expected_models
    assert {decision.kind for _, decision, *_ in log} > {"opened"}, "some task was to be reused"
    assert not any((killed / "store" / "checkpoints").iterdir())
