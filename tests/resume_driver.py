"""Fit a small stream over a store, killed at a chosen point: `python resume_driver.py DIR POINT`.

POINT is one of

- ``trainings:N``: when the N-th training that this process runs is in the store,
- ``HOOK:N``: at the N-th call of that hook of `Callbacks`,
- ``before-outcome:N`` and ``after-outcome:N``: about the N-th task's way into the log,
- ``none``.

The key of each training that runs is appended to ``DIR/executed.txt``.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from automl_support import stripes

from trautoml import automl
from trautoml.automl import TransferAutoML
from trautoml.callbacks import Callbacks
from trautoml.engine import LocalEngine
from trautoml.search import SearchBudget
from trautoml.settings import Settings
from trautoml.store import Store

TASKS = {"first": (0, 60.0), "noisy": (1, 150.0), "alike": (2, 60.0)}


class Killer(Callbacks):
    """Kills this process when the point is reached."""

    def __init__(self, point: str) -> None:
        self._what, _, number = point.partition(":")
        self._left = int(number or 0)

    def reach(self, what: str) -> None:
        if what == self._what:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def probes_progress(self, *_: object) -> None:
        self.reach("probes_progress")

    def search_progress(self, *_: object) -> None:
        self.reach("search_progress")

    def training_progress(self, *_: object) -> None:
        self.reach("training_progress")


class NotingEngine(LocalEngine):
    """Appends the key of every training that it runs to a file.

    A training takes a second per epoch, so that a time budget ends every search at the same place.
    """

    def __init__(self, workspace: Path, file: Path, killer: Killer) -> None:
        super().__init__(workspace, "cpu")
        self._file, self._killer = file, killer

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            result = replace(job.run(), seconds=job.epochs)
            with self._file.open("a") as file:
                file.write(f"{job.key}\n")
            yield index, result
            self._killer.reach("trainings")  # by now the result is in the store


class KillingStore(Store):
    def __init__(self, folder: Path, killer: Killer) -> None:
        super().__init__(folder)
        self._killer = killer

    def add_outcome(self, *arguments: Any, **options: Any) -> Any:
        self._killer.reach("before-outcome")
        entry = super().add_outcome(*arguments, **options)
        self._killer.reach("after-outcome")
        return entry


def main(folder: Path, point: str) -> None:
    killer = Killer(point)
    automl.digits = lambda: stripes("easy", seed=9, noise=20.0)
    with KillingStore(folder / "store", killer) as store:
        fitting = TransferAutoML(
            store,
            settings=Settings(seed=2, probes=2, trials=4, probe_images=240),
            budget=SearchBudget(trials=4, epochs=3, seconds=5.0),  # over in the second round
            engine=NotingEngine(store.folder, folder / "executed.txt", killer),
            callbacks=[killer],
        )
        for name, (seed, noise) in TASKS.items():
            fitting.fit(stripes(name, seed=seed, noise=noise))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
