"""Small tasks, engines and observers for the tests of everything above training."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trautoml.automl import TransferAutoML
from trautoml.callbacks import Callbacks
from trautoml.engine import Engine, LocalEngine, SharedTask
from trautoml.grouping import Decision
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.probes import ProbeSuite
from trautoml.records import LogEntry
from trautoml.search import HyperbandSearcher, SearchBudget
from trautoml.settings import Settings
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.store import Store
from trautoml.task import Task
from trautoml.testing import tiny_task

SETTINGS = Settings(probes=2, trials=4, probe_images=120)
BUDGET = SearchBudget(trials=3, epochs=2)


def stripes(name: str = "stripes", seed: int = 0, n: int = 60, noise: float = 60.0) -> Task:
    """Upright, level and slanted stripes of 8 x 8 pixels; seeds differ in the draw only."""
    return tiny_task(seed, name=name, n_train=n, noise=noise)


def chain(channels: int = 8, *, learning_rate: float = 0.1) -> ModelSpec:
    """One small convolution that learns the stripes in a few epochs."""
    layer = {"kernel": 3, "channels": channels, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
    structure = {"layers": [layer], "dense": [], "batch_norm": True}
    return ModelSpec("chain", structure, Hyperparameters(learning_rate, 0.9, 1e-4, 16, 1.0))


SUITE = ProbeSuite((chain(8), chain(16, learning_rate=0.02)), images=120)


class CountingEngine(LocalEngine):
    """Notes the key of every training that it runs."""

    def __init__(self, workspace: Path | None = None) -> None:
        super().__init__(workspace, "cpu")
        self.executed: list[str] = []

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, job in enumerate(jobs):
            result = job.run()
            self.executed.append(job.key)
            yield index, result


class ScriptedEngine(Engine):
    """Gives results by a function of spec and epochs, in an order of its own, training nothing."""

    def __init__(
        self,
        script: Callable[[ModelSpec, float], TrainingResult],
        *,
        n_workers: int = 1,
        shuffle: int | None = None,
    ) -> None:
        super().__init__(Path("never-written"), "cpu")
        self.n_workers = n_workers
        self.jobs: list[TrainingJob] = []
        self._script = script
        self._rng = None if shuffle is None else np.random.default_rng(shuffle)

    def share(self, task: Task) -> SharedTask:
        return SharedTask(task.fingerprint, task=task)

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        order = np.arange(len(jobs)) if self._rng is None else self._rng.permutation(len(jobs))
        for index in order.tolist():
            self.jobs.append(jobs[index])
            yield index, self._script(jobs[index].spec, jobs[index].epochs)


def scored(score: float, epochs: float, *, seconds: float = 1.0, diverged: bool = False) -> Any:
    return TrainingResult(score, None, epochs, seconds, diverged)


class Recorder(Callbacks):
    """Keeps every call as (hook, what it was about)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def task_started(self, task: Task) -> None:
        self.events.append(("task_started", task.name))

    def features_progress(self, task: Task, done: int, total: int) -> None:
        self.events.append(("features_progress", (done, total)))

    def probes_progress(self, task: Task, done: int, total: int) -> None:
        self.events.append(("probes_progress", (done, total)))

    def decided(self, task: Task, decision: Decision, sentence: str) -> None:
        self.events.append(("decided", (decision, sentence)))

    def search_progress(self, task: Task, progress: Any) -> None:
        self.events.append(("search_progress", progress))

    def training_progress(self, task: Task, epoch: int, epochs: int, score: float) -> None:
        self.events.append(("training_progress", (epoch, epochs)))

    def task_finished(self, outcome: Any) -> None:
        self.events.append(("task_finished", outcome.entry.name))

    @property
    def hooks(self) -> list[str]:
        """The hooks in order, repetitions left out."""
        names = [name for name, _ in self.events]
        return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def make_automl(store: Store, **options: Any) -> TransferAutoML:
    """Make a small TransferAutoML whose probes are set, on an engine that counts."""
    if store.setting("suite") is None:
        store.add_setting("suite", SUITE.to_json())
    options.setdefault("settings", SETTINGS)
    options.setdefault("budget", BUDGET)
    options.setdefault("engine", CountingEngine(store.folder))
    options.setdefault("searcher", HyperbandSearcher(slots=3))
    return TransferAutoML(store, **options)


def add_entry(store: Store, task: Task, decision: Decision, **options: Any) -> LogEntry:
    """Append a fitted task to a store's log and return it as the store gives it back."""
    values = {
        "position": len(store.log()),
        "fingerprint": task.fingerprint,
        "name": task.name,
        "n_train": task.n_train,
        "image_shape": task.image_shape,
        "class_names": task.class_names,
        "trials": cloud(0.5, 0.6, seed=0),
        "decision": decision,
        "spec": chain(),
        "searched": True,
        "score": 0.9,
        "test_score": 0.875,
        "seconds": {"probes": 1.0, "search": 10.0, "training": 1.0},
        "search_estimate": 10.0,
        "wall_seconds": 3.0,
    }
    store.add_outcome(LogEntry(**values | options))
    return store.log()[-1]


def cloud(x: float, y: float, seed: int, trials: int = 12) -> np.ndarray:
    """Trials of two probes about (x, y), as a measurement might give them."""
    return np.random.default_rng(seed).normal((x, y), 0.02, size=(trials, 2))


CLOUDS = {
    "first": cloud(0.50, 0.60, 0),
    "alike": cloud(0.50, 0.60, 1),
    "near": cloud(0.53, 0.57, 2),
    "far": cloud(0.90, 0.20, 3),
}
"""A stream in which every kind of decision is taken: opened, joined, split, opened."""
