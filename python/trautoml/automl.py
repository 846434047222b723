"""TransferAutoML: Algorithm 1 of the paper, the one place where all of it meets."""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from trautoml.callbacks import Callbacks
from trautoml.classifier import ImageClassifier, load_classifier
from trautoml.demo_tasks import digits
from trautoml.engine import Engine, make_engine
from trautoml.errors import EngineError, InputError, StoreError
from trautoml.explain import explain
from trautoml.grouping import Decision, MarkovGrouper
from trautoml.jobs import checkpoint_folder, resumable_job
from trautoml.probes import Measurement, ProbeSuite, pilot
from trautoml.recording import RecordingEngine
from trautoml.reuse import PaperPolicy, ReusePolicy
from trautoml.search import HyperbandSearcher, SearchBudget, Searcher
from trautoml.spaces import ChainSpace
from trautoml.spec import ModelSpec
from trautoml.store import LogEntry, Store
from trautoml.task import Task

_log = logging.getLogger("trautoml")


@dataclass(frozen=True)
class Settings:
    """What is fixed for the life of a store: tasks only compare under equal settings.

    Parameters
    ----------
    seed : int
        Draws probes, presets, candidates and initial weights.
    probes : int
        Number of probes B.
    trials : int
        Trials T of each probe.
    probe_images : int
        Training images that one trial sees.
    grouping : dict
        Arguments of `MarkovGrouper`, other than the seed.

    Raises
    ------
    InputError
        If a number is out of range. `GroupingError`, one of its kind, for the grouping.
    """

    seed: int = 0
    probes: int = 6
    trials: int = 8
    probe_images: int = 4000
    grouping: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("probes", 1), ("trials", 1), ("probe_images", 1)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} >= {least}, got {getattr(self, name)}")
        tests = self.grouping.get("alpha", 0.005) > 0
        if tests and self.trials <= self.probes:
            raise InputError(
                f"the test needs more trials than probes, got {self.trials} trials of "
                f"{self.probes} probes: raise trials above {self.probes}, take fewer probes, or "
                "switch the test off with alpha = 0"
            )
        # Complete, so that defaults given and defaults left out compare equal.
        complete = {k: v for k, v in self.grouper().params.items() if k != "seed"}
        object.__setattr__(self, "grouping", complete)

    @classmethod
    def of(cls, store: Store) -> "Settings | None":
        """Return the settings that a store was made with, or None for a new one."""
        stored = store.setting("settings")
        return None if stored is None else cls(**stored)

    def grouper(self) -> MarkovGrouper:
        """Make a grouper that has seen nothing."""
        return MarkovGrouper(**self.grouping, seed=self.seed)


@dataclass(frozen=True)
class Outcome:
    """What `TransferAutoML.fit` gives for a task.

    Attributes
    ----------
    entry : LogEntry
        The record in the store: decision, spec, scores, seconds.
    sentence : str
        The decision in words.
    model_file : Path
        The weights, in safetensors format.
    restored : bool
        Whether the task had been fitted before and nothing was computed.
    """

    entry: LogEntry
    sentence: str
    model_file: Path
    restored: bool

    @property
    def decision(self) -> Decision:
        """What the grouper decided."""
        return self.entry.decision

    @property
    def spec(self) -> ModelSpec:
        """The model: architecture and hyper-parameters."""
        return self.entry.spec

    @property
    def test_score(self) -> float:
        """Accuracy on the test split."""
        return self.entry.test_score

    @property
    def seconds(self) -> dict[str, float]:
        """Worker seconds of ``"probes"``, ``"search"`` and ``"training"``."""
        return self.entry.seconds

    @property
    def saved_seconds(self) -> float:
        """Worker seconds less than a search; after a search, minus the cost of the probes."""
        return self.entry.saved_seconds

    @cached_property
    def model(self) -> ImageClassifier:
        """The trained model, on the CPU.

        Raises
        ------
        StoreError
            If its file has gone.
        """
        entry = self.entry
        if not self.model_file.is_file():
            raise StoreError(
                f"the weights of {entry.name} are not at {self.model_file}: put the file back, or "
                "train the spec again"
            )
        return load_classifier(
            self.model_file, entry.spec, entry.image_shape, len(entry.class_names)
        )

    def __repr__(self) -> str:
        return (
            f"<Outcome {self.entry.name}: {self.sentence}; test accuracy {self.test_score:.3f}, "
            f"model {self.spec.architecture} {self.spec.digest}>"
        )


@dataclass(frozen=True)
class FittedModel:
    """A spec with the model that was trained of it.

    Attributes
    ----------
    spec : ModelSpec
        What was trained.
    score, test_score : float
        Validation and test accuracy.
    search_seconds, training_seconds : float
        Worker seconds of the search, 0 if there was none, and of the training after it.
    checkpoint : Path
        The weights.
    """

    spec: ModelSpec
    score: float
    test_score: float
    search_seconds: float
    training_seconds: float
    checkpoint: Path


class TransferAutoML:
    """Fits datasets one after another, reusing models between those of one kind.

    A run that is killed at any moment goes on where it stopped: finished trainings are in the
    store and are not run again, and nothing of a task is decided for good before its model is
    there. One instance writes to a store at a time; use it from one thread.

    Parameters
    ----------
    store : Store, Path or str
        Where the log and the models are kept; a path is opened, and made if need be.
    settings : Settings, optional
        Default: those of the store, or the defaults for a new one.
    budget : SearchBudget, optional
        What one search may spend. Its `epochs` are also those of the final training.
    searcher : Searcher, optional
        Default: `HyperbandSearcher` over the chain space, recorded in the store's database.
    policy : ReusePolicy, optional
        Default: the paper's.
    engine : Engine, optional
        Where work runs. Default: `make_engine` on the store's folder, closed by `close`.
    device : str
        ``"auto"`` (CUDA if present), ``"cpu"``, ``"cuda"``, ...
    callbacks : sequence of Callbacks
        Observers.

    Raises
    ------
    InputError
        If `settings` differ from those that the store was made with.
    StoreError
        If the store can't be used.
    """

    def __init__(
        self,
        store: Store | Path | str = "trautoml-store",
        *,
        settings: Settings | None = None,
        budget: SearchBudget | None = None,
        searcher: Searcher | None = None,
        policy: ReusePolicy | None = None,
        engine: Engine | None = None,
        device: str = "auto",
        callbacks: Sequence[Callbacks] = (),
    ) -> None:
        self._owns_store = not isinstance(store, Store)
        self.store = store if isinstance(store, Store) else Store(store)
        try:
            self.settings = _agreed_settings(self.store, settings)
        except BaseException:
            if self._owns_store:
                self.store.close()
            raise
        self.budget = budget or SearchBudget()
        self.policy = policy or PaperPolicy()
        self.device = device
        self.callbacks = list(callbacks)
        self._owns_engine = engine is None
        self._inner = engine or make_engine(device=device, workspace=self.store.folder)
        self.engine = RecordingEngine(self._inner, self.store)
        self.searcher = searcher or HyperbandSearcher(
            seed=self.settings.seed, storage=self.store.url, device=device
        )

    def fit(self, task: Task) -> Outcome:
        """Give the task a model: reuse a group's or search one (Algorithm 1).

        Parameters
        ----------
        task : Task
            If its content was fitted before, the stored outcome is returned at once.

        Returns
        -------
        Outcome
            Decision, spec, trained model and the price.

        Raises
        ------
        SearchError
            If a search found nothing; the task stays undecided.
        EngineError
            If the work could not be run; call again to go on.
        """
        log = self.store.log()
        for entry in log:
            if entry.fingerprint == task.fingerprint:
                self._tidy_up(task)  # of a run that was killed before it could
                outcome = self._outcome(entry, log, restored=True)
                self._tell("task_finished", outcome)
                return outcome
        started = time.perf_counter()
        self._tell("task_started", task)
        measured = self._measure(task)
        decision = self._grouper(log).predict_one(measured.trials)
        self._tell("decided", task, decision, explain(decision, log, task.name))

        spec = self.policy.choose(_group_specs(log), measured.trials, decision)
        model = self.search(task) if spec is None else self._train(task, spec)
        probe_seconds = float(measured.seconds.sum())
        self.store.keep_model(task.fingerprint, model.checkpoint)
        entry = self.store.add_outcome(
            task,
            trials=measured.trials,
            decision=decision,
            spec=model.spec,
            searched=spec is None,
            score=model.score,
            test_score=model.test_score,
            seconds={
                "probes": probe_seconds,
                "search": model.search_seconds,
                "training": model.training_seconds,
            },
            search_estimate=estimate_search(log, probe_seconds)
            if spec is not None
            else model.search_seconds,
            wall_seconds=time.perf_counter() - started,
        )
        self._tidy_up(task)
        outcome = self._outcome(entry, [*log, entry], restored=False)
        self._tell("task_finished", outcome)
        return outcome

    def search(self, task: Task) -> "FittedModel":
        """Search a model for the task alone and train it: what `fit` does where nothing is reused.

        Nothing is decided or logged, but the trainings are remembered. This is the baseline that
        sharing is compared with.

        Raises
        ------
        SearchError
            If the search found nothing.
        """
        found = self.searcher.search(
            task,
            budget=self.budget,
            engine=self.engine,
            callback=lambda progress: self._tell("search_progress", task, progress),
        )
        trained = [int(record.epochs) for record in found.history if record.spec == found.spec]
        return self._train(
            task, found.spec, done=max(trained, default=0), search_seconds=found.seconds
        )

    @cached_property
    def suite(self) -> ProbeSuite:
        """The store's probes; sampled and piloted when a new store first needs them."""
        stored = self.store.setting("suite")
        if stored is not None:
            return ProbeSuite.from_json(stored)
        _log.info("a new store: %d probes are drawn and tried out", self.settings.probes)
        space, seed = ChainSpace(), self.settings.seed
        sampled = ProbeSuite.sample(
            self.settings.probes, seed=seed, space=space, images=self.settings.probe_images
        )
        suite = pilot(
            sampled, digits(), space=space, seed=seed, engine=self.engine, device=self.device
        )
        self.store.add_setting("suite", suite.to_json())
        return suite

    def close(self) -> None:
        """Stop the workers and close the store, each unless it was given."""
        if self._owns_engine:
            self._inner.close()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> "TransferAutoML":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _measure(self, task: Task) -> Measurement:
        return self.suite.measure(
            task,
            self.settings.trials,
            engine=self.engine,
            device=self.device,
            callback=lambda done, total: self._tell("probes_progress", task, done, total),
        )

    def _grouper(self, log: list[LogEntry]) -> MarkovGrouper:
        grouper = self.settings.grouper()
        for entry in log:
            grouper.learn_one(entry.trials, entry.decision)
        return grouper

    def _train(
        self, task: Task, spec: ModelSpec, *, done: int = 0, search_seconds: float = 0.0
    ) -> "FittedModel":
        """Train the spec for the full budget, epoch by epoch, so that a kill costs one epoch.

        A search has trained its winner already: its checkpoint after `done` epochs is there, and
        only what it lacks is trained.
        """
        shared = self.engine.share(task)
        epochs, seconds = self.budget.epochs, 0.0
        for epoch in range(min(done + 1, epochs), epochs + 1):
            job = resumable_job(
                self.engine.workspace,
                shared,
                spec,
                epochs=epoch,
                schedule_epochs=epochs,
                seed=self.settings.seed,
                device=self.device,
                test=epoch == epochs,
            )
            ((_, result),) = self.engine.run([job])
            seconds += result.seconds
            self._tell("training_progress", task, epoch, epochs, result.score)
        if result.test_score is None or job.checkpoint is None:
            raise EngineError(
                "expected a test score of the last epoch: an engine must run every job"
            )
        if result.diverged:
            _log.warning(
                "the model of %s diverged in its training: it does no better than chance", task.name
            )
        return FittedModel(
            spec, result.score, result.test_score, search_seconds, seconds, job.checkpoint
        )

    def _tidy_up(self, task: Task) -> None:
        """Remove what only unfinished work on a task needs."""
        self.engine.release(task)
        folder = checkpoint_folder(self.engine.workspace, task.fingerprint)
        shutil.rmtree(folder, ignore_errors=True)

    def _outcome(self, entry: LogEntry, log: list[LogEntry], *, restored: bool) -> Outcome:
        sentence = explain(entry.decision, log[: entry.position], entry.name)
        return Outcome(entry, sentence, self.store.model_file(entry.fingerprint), restored)

    def _tell(self, hook: str, *arguments: object) -> None:
        for callbacks in self.callbacks:
            getattr(callbacks, hook)(*arguments)


def estimate_search(log: Sequence[LogEntry], probe_seconds: float) -> float:
    """Estimate what a search would cost a task, in worker seconds.

    The searches so far, each scaled by how much longer the probes took on this task: the probes
    are networks of the same space, so they feel image size, device and load as a search would.

    Parameters
    ----------
    log : sequence of LogEntry
        Earlier tasks; those that were searched count.
    probe_seconds : float
        Worker seconds of this task's probes.

    Returns
    -------
    float
        The mean over the searched tasks; 0 if there is none.
    """
    ratios = [
        entry.search_estimate / entry.seconds["probes"]
        for entry in log
        if entry.searched and entry.seconds["probes"] > 0
    ]
    return probe_seconds * float(np.mean(ratios)) if ratios else 0.0


def _group_specs(log: Sequence[LogEntry]) -> dict[int, ModelSpec]:
    """Each group's model: the spec that was found when the group was opened."""
    specs: dict[int, ModelSpec] = {}
    for entry in log:
        specs.setdefault(entry.decision.group, entry.spec)
    return specs


def _agreed_settings(store: Store, wanted: Settings | None) -> Settings:
    """Return the store's settings, fixing them if it is new.

    Raises
    ------
    InputError
        If others are wanted than the store was made with.
    """
    settings = Settings.of(store)
    if settings is None:
        settings = wanted or Settings()
        store.add_setting("settings", asdict(settings))
        return settings
    if wanted is not None and wanted != settings:
        old, new = _flat(settings), _flat(wanted)
        differences = ", ".join(
            f"{name}: {old[name]} in the store, {new[name]} wanted"
            for name in old
            if old[name] != new[name]
        )
        raise InputError(
            f"the store {store.folder} was made with other settings ({differences}); tasks only "
            "compare under equal settings: leave the settings out, or start another store"
        )
    return settings


def _flat(settings: Settings) -> dict[str, Any]:
    values = asdict(settings)
    grouping: dict[str, Any] = values.pop("grouping")
    return values | grouping
