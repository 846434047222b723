"""TransferAutoML: Algorithm 1 of the paper, the one place where all of it meets."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from trautoml.backbones import Backbone, FrozenBackbone
from trautoml.callbacks import Callbacks
from trautoml.demo_tasks import digits
from trautoml.device import resolve_device
from trautoml.engine import Engine, make_engine
from trautoml.errors import EngineError
from trautoml.explain import explain
from trautoml.grouping import Decision, MarkovGrouper
from trautoml.inputs import Inputs
from trautoml.jobs import TrainingJob, resumable_job
from trautoml.outcome import FittedModel, Outcome
from trautoml.probes import Measurement, ProbeSuite, pilot
from trautoml.recording import RecordingEngine
from trautoml.records import LogEntry
from trautoml.reuse import PaperPolicy, ReusePolicy
from trautoml.search import SearchBudget, Searcher, make_searcher
from trautoml.settings import Settings, agreed_settings
from trautoml.spec import ModelSpec
from trautoml.store import Store
from trautoml.task import Task

_log = logging.getLogger("trautoml")


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
    searcher : Searcher or str
        A name is one of `searcher_names`: it searches what the setting says, with the store's
        seed. Default ``"hyperband"``. A searcher of another seed than the store's works too, but
        its winner is trained once more.
    policy : ReusePolicy, optional
        Default: the paper's.
    engine : Engine, optional
        Where work runs. Default: `make_engine` on the store's folder, closed by `close`.
    device : str
        What the default engine computes on; see `Engine`.
    callbacks : sequence of Callbacks
        Observers.

    Raises
    ------
    InputError
        If `settings` differ from those that the store was made with, there is no such searcher, it
        doesn't search what the setting says, or the backbone can't be had.
    StoreError
        If the store can't be used.
    """

    def __init__(
        self,
        store: Store | Path | str = "trautoml-store",
        *,
        settings: Settings | None = None,
        budget: SearchBudget | None = None,
        searcher: Searcher | str = "hyperband",
        policy: ReusePolicy | None = None,
        engine: Engine | None = None,
        device: str = "auto",
        callbacks: Sequence[Callbacks] = (),
    ) -> None:
        self._owns_store = not isinstance(store, Store)
        resolve_device(device)  # a mistake in it must not leave a store behind
        self.store = store if isinstance(store, Store) else Store(store)
        try:
            # What is wrong with the setting must show before it is fixed for good.
            meant = Settings.of(self.store) or settings or Settings()
            self.searcher = self._searcher(searcher, meant)
            self._backbone = self._freeze(meant)
            self.settings = agreed_settings(self.store, settings)
        except BaseException:
            if self._owns_store:
                self.store.close()
            raise
        self.budget = budget or SearchBudget()
        self.policy = policy or PaperPolicy()
        self.callbacks = list(callbacks)
        self._owns_engine = engine is None
        self._inner = engine or make_engine(device=device, workspace=self.store.folder)
        self.engine = RecordingEngine(self._inner, self.store)
        self._inputs = Inputs(self.engine, self._backbone)

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
                self._inputs.remove(task)  # of a run that was killed before it could
                outcome = self._outcome(entry, log, restored=True)
                self._tell("task_finished", outcome)
                return outcome
        started = time.perf_counter()
        self._tell("task_started", task)
        suite = self.suite  # is piloted first, on features of its own
        inputs, feature_seconds = self._prepare(task)
        measured = self._measure(suite, task, inputs)
        decision = self._grouper(log).predict_one(measured.trials)
        self._tell("decided", task, decision, explain(decision, log, task.name))

        spec = self.policy.choose(_group_specs(log), measured.trials, decision)
        model = self._search(task, inputs) if spec is None else self._reuse(task, inputs, spec)
        self.store.keep_model(task.fingerprint, model.checkpoint)
        wall_seconds = time.perf_counter() - started
        entry = self._entry(task, log, measured, decision, model, feature_seconds, wall_seconds)
        self.store.add_outcome(entry)
        self._inputs.remove(task)
        outcome = self._outcome(entry, [*log, entry], restored=False)
        self._tell("task_finished", outcome)
        return outcome

    def search(self, task: Task) -> FittedModel:
        """Search a model for the task alone and train it: what `fit` does where nothing is reused.

        Nothing is decided or logged, but the trainings are remembered. This is the baseline that
        sharing is compared with.

        Raises
        ------
        SearchError
            If the search found nothing.
        """
        inputs, _ = self._prepare(task)
        return self._search(task, inputs)

    def _search(self, task: Task, inputs: Task) -> FittedModel:
        found = self.searcher.search(
            inputs,
            budget=self.budget,
            engine=self.engine,
            callback=lambda progress: self._tell("search_progress", task, progress),
        )
        trained = [
            int(record.epochs)
            for record in found.history
            if record.alone and record.spec == found.spec
        ]
        model = self._train(task, inputs, found.spec, done=max(trained, default=0))
        if model.diverged:
            _log.warning(
                "the model of %s diverged in its training: it does no better than chance", task.name
            )
        return replace(model, searched=True, search_seconds=found.seconds)

    @cached_property
    def suite(self) -> ProbeSuite:
        """The store's probes; sampled and piloted when a new store first needs them."""
        stored = self.store.setting("suite")
        if stored is not None:
            return ProbeSuite.from_json(stored)
        _log.info("a new store: %d probes are drawn and tried out", self.settings.probes)
        space, seed = self.settings.space(), self.settings.seed
        sampled = ProbeSuite.sample(
            self.settings.probes, seed=seed, space=space, images=self.settings.probe_images
        )
        easy = digits()
        inputs, _ = self._prepare(easy)
        suite = pilot(sampled, inputs, space=space, seed=seed, engine=self.engine)
        self._inputs.remove(easy)
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

    def _searcher(self, searcher: Searcher | str, settings: Settings) -> Searcher:
        if not isinstance(searcher, str):
            return searcher
        return make_searcher(searcher, settings.space(), seed=settings.seed, storage=self.store.url)

    def _freeze(self, settings: Settings) -> FrozenBackbone | None:
        if not settings.backbone:
            return None
        return Backbone(**settings.backbone).freeze(self.store.folder / "backbone")

    def _prepare(self, task: Task) -> tuple[Task, float]:
        """Give what trainings on the task are given, and the worker seconds that it took."""
        return self._inputs.prepare(
            task, lambda done, total: self._tell("features_progress", task, done, total)
        )

    def _measure(self, suite: ProbeSuite, task: Task, inputs: Task) -> Measurement:
        return suite.measure(
            inputs,
            self.settings.trials,
            engine=self.engine,
            callback=lambda done, total: self._tell("probes_progress", task, done, total),
        )

    def _grouper(self, log: list[LogEntry]) -> MarkovGrouper:
        grouper = self.settings.grouper()
        for entry in log:
            grouper.learn_one(entry.trials, entry.decision)
        return grouper

    def _reuse(self, task: Task, inputs: Task, spec: ModelSpec) -> FittedModel:
        """Train a known spec; search after all if it diverges on this task."""
        model = self._train(task, inputs, spec)
        if not model.diverged:
            return model
        _log.warning("the group's model diverges on %s: a search is run instead", task.name)
        searched = self._search(task, inputs)
        wasted = model.training_seconds
        return replace(searched, training_seconds=searched.training_seconds + wasted)

    def _train(self, task: Task, inputs: Task, spec: ModelSpec, *, done: int = 0) -> FittedModel:
        """Train the spec for the full budget, epoch by epoch, so that a kill costs one epoch.

        Where a search has trained its winner already, its checkpoint after `done` epochs is there,
        and only what it lacks is trained. It is not, if a searcher trains with a seed of its own.
        """
        shared = self.engine.share(inputs)
        epochs, seconds = self.budget.epochs, 0.0

        def job_until(epoch: int) -> TrainingJob:
            return resumable_job(
                self.engine.workspace,
                shared,
                spec,
                epochs=epoch,
                schedule_epochs=epochs,
                seed=self.settings.seed,
                device=self.engine.device,
                test=epoch == epochs,
            )

        first = min(done + 1, epochs) if job_until(epochs).checkpoint_is_there else 1
        for epoch in range(first, epochs + 1):
            job = job_until(epoch)
            ((_, result),) = self.engine.run([job])
            seconds += result.seconds
            self._tell("training_progress", task, epoch, epochs, result.score)
        if result.test_score is None or job.checkpoint is None:
            raise EngineError(
                "expected a test score of the last epoch: an engine must run every job"
            )
        return FittedModel(
            spec=spec,
            score=result.score,
            test_score=result.test_score,
            diverged=result.diverged,
            training_seconds=seconds,
            checkpoint=job.checkpoint,
        )

    def _entry(
        self,
        task: Task,
        log: Sequence[LogEntry],
        measured: Measurement,
        decision: Decision,
        model: FittedModel,
        feature_seconds: float,
        wall_seconds: float,
    ) -> LogEntry:
        probe_seconds = float(measured.seconds.sum())
        limit = self.budget.seconds
        at_most = None if limit is None else limit * self.engine.n_workers
        return LogEntry(
            position=len(log),
            fingerprint=task.fingerprint,
            name=task.name,
            n_train=task.n_train,
            image_shape=task.image_shape,
            class_names=task.class_names,
            trials=measured.trials,
            decision=decision,
            spec=model.spec,
            searched=model.searched,
            score=model.score,
            test_score=model.test_score,
            seconds={
                **({} if self._backbone is None else {"features": feature_seconds}),
                "probes": probe_seconds,
                "search": model.search_seconds,
                "training": model.training_seconds,
            },
            search_estimate=model.search_seconds
            if model.searched
            else estimate_search(log, task.n_train, probe_seconds, at_most),
            wall_seconds=wall_seconds,
        )

    def _outcome(self, entry: LogEntry, log: list[LogEntry], *, restored: bool) -> Outcome:
        sentence = explain(entry.decision, log[: entry.position], entry.name)
        backbone = None if self._backbone is None else self._backbone.folder
        file = self.store.model_file(entry.fingerprint)
        return Outcome(entry, sentence, file, restored, backbone)

    def _tell(self, hook: str, *arguments: object) -> None:
        for callbacks in self.callbacks:
            getattr(callbacks, hook)(*arguments)


def estimate_search(
    log: Sequence[LogEntry], n_train: int, probe_seconds: float, at_most: float | None = None
) -> float:
    """Estimate what searching a task alone would cost, in worker seconds.

    A search goes through all training images, a probe always through the same number. So the
    cost of each search so far is taken per training image and per second of the probes, which are
    networks of the same space and feel image size, device and load as a search would.

    Parameters
    ----------
    log : sequence of LogEntry
        Earlier tasks; those that were searched count.
    n_train : int
        Training images of this task.
    probe_seconds : float
        Worker seconds of its probes.
    at_most : float, optional
        What a search may spend.

    Returns
    -------
    float
        The mean over the searched tasks; 0 if there is none.
    """
    ratios = [
        (entry.search_estimate + entry.seconds["training"])
        / (entry.n_train * entry.seconds["probes"])
        for entry in log
        if entry.searched and entry.seconds["probes"] > 0
    ]
    estimate = float(np.mean(ratios)) * n_train * probe_seconds if ratios else 0.0
    return estimate if at_most is None else min(estimate, at_most)


def _group_specs(log: Sequence[LogEntry]) -> dict[int, ModelSpec]:
    """Each group's model: the spec that was found when the group was opened."""
    specs: dict[int, ModelSpec] = {}
    for entry in log:
        specs.setdefault(entry.decision.group, entry.spec)
    return specs
