"""Hyperband (Li et al. 2017) over a search space, with Optuna's trials and storage."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.trial import TrialState

from trautoml.database import tune
from trautoml.engine import Engine
from trautoml.errors import InputError, SearchError
from trautoml.jobs import TrainingJob, TrainingResult, resumable_job
from trautoml.search._base import (
    SearchBudget,
    Searcher,
    SearchProgress,
    SearchResult,
    TrialRecord,
)
from trautoml.search._pruner import RoundPruner
from trautoml.spaces import ChainSpace, RandomChoice, SearchSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task

_STREAM = 0
"""Keeps the candidates of a search apart from the probes with the same seed."""


class HyperbandSearcher(Searcher):
    """Random candidates, most of which are stopped early.

    Candidates are trained in rounds of `slots`, each to its next rung. Then all of the round are
    decided on at once: of the n of a bracket that have reached a rung so far, in this round and
    before, those of the round go on that are among the best n // eta (at least the best one); of
    equal scores, the first started. A candidate that diverged counts, but never goes on. Brackets
    are those of Optuna's `HyperbandPruner`: in bracket b, nobody is stopped before eta^b epochs.
    So a decision never depends on which worker was faster, and the same search gives the same
    result on any number of workers, unless a time budget ends it.

    Parameters
    ----------
    space : SearchSpace, optional
        Default: the chain space.
    seed : int
        Candidate i is a function of the seed and i alone: searches on different tasks see the same
        sequence and compare configuration by configuration.
    reduction_factor : int
        eta: one in eta candidates goes on to a rung with eta times the epochs. Default 3.
    slots : int
        Candidates in a round, at most. Default 27: a search of the usual size then decides on all
        its candidates at once, and nobody goes on only for having been early.
    storage : str, optional
        URL of the database for Optuna's records. Default: memory.
    device : str
        See `TrainingJob`.

    Raises
    ------
    InputError
        If `reduction_factor` is below 2 or `slots` below 1.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        seed: int = 0,
        reduction_factor: int = 3,
        slots: int = 27,
        storage: str | None = None,
        device: str = "auto",
    ) -> None:
        if reduction_factor < 2 or slots < 1:
            raise InputError(
                f"expected reduction_factor >= 2 and slots >= 1, got {reduction_factor} and {slots}"
            )
        self.space = space or ChainSpace()
        self.seed = seed
        self.reduction_factor = reduction_factor
        self.slots = slots
        self.storage = storage
        self.device = device

    def candidate(self, index: int) -> RandomChoice:
        """Draw candidate `index` of this seed's sequence; its `params` are its choices."""
        choice = RandomChoice(np.random.default_rng([self.seed, _STREAM, index]))
        self.space.define(choice)
        return choice

    def rungs(self, epochs: int) -> list[int]:
        """Budgets in epochs at which candidates are compared; the last is `epochs`."""
        steps = []
        step = 1
        while step < epochs:
            steps.append(step)
            step *= self.reduction_factor
        return [*steps, epochs]

    def search(
        self,
        task: Task,
        *,
        budget: SearchBudget,
        engine: Engine,
        warm_start: Sequence[ModelSpec] = (),
        callback: Callable[[SearchProgress], None] | None = None,
    ) -> SearchResult:
        """See `Searcher.search`."""
        with _study(self, task, budget) as study:
            run = _Run(self, study, task, budget, engine, list(warm_start), callback)
            while run.round():
                pass
        return run.result()


@dataclass
class _Candidate:
    """A candidate that is still in the race."""

    number: int
    trial: optuna.Trial
    spec: ModelSpec
    rung: int = 0
    seconds_per_epoch: float = 0.0


@dataclass
class _Run:
    """The state of one search."""

    searcher: HyperbandSearcher
    study: optuna.Study
    task: Task
    budget: SearchBudget
    engine: Engine
    warm_start: list[ModelSpec]
    callback: Callable[[SearchProgress], None] | None
    active: list[_Candidate] = field(default_factory=list)
    history: list[TrialRecord] = field(default_factory=list)
    started: int = 0
    rounds: int = 0
    seconds: float = 0.0

    def round(self) -> bool:
        """Train every active candidate to its next rung and decide; False at the end."""
        while len(self.active) < self.searcher.slots and self.started < self.allowed:
            self.active.append(self._start())
        jobs = self._jobs()
        remembered = sum(self.engine.remembers(job) for job in jobs)
        if not jobs or (not remembered and self._out_of_time()):
            self._drop(self.active)
            return False
        self.rounds += 1
        records = self._train(jobs, remembered)
        self._drop([c for i, c in enumerate(self.active) if i not in records])
        scored = [(self.active[i], records[i]) for i in sorted(records)]
        # All report before the first is decided on: each is compared with the whole round.
        for candidate, record in scored:
            score = math.nan if record.diverged else record.score
            candidate.trial.report(score, self._epochs(candidate))
        self.active = [c for c, record in scored if self._goes_on(c, record)]
        return True

    @property
    def allowed(self) -> int:
        """Candidates that may be started, warm starts among them."""
        return max(self.budget.trials, len(self.warm_start))

    def _start(self) -> _Candidate:
        index = self.started
        self.started += 1
        if index < len(self.warm_start):
            # Optuna needs no parameters to judge a trial: a spec from another space is welcome.
            number, spec, trial = -1 - index, self.warm_start[index], self.study.ask()
        else:
            number = index - len(self.warm_start)
            self.study.enqueue_trial(self.searcher.candidate(number).params)
            trial = self.study.ask()
            spec = self.searcher.space.define(trial)
        trial.set_user_attr("spec", spec.to_json())
        return _Candidate(number, trial, spec)

    def _epochs(self, candidate: _Candidate) -> int:
        return self.searcher.rungs(self.budget.epochs)[candidate.rung]

    def _out_of_time(self) -> bool:
        limit = self.budget.seconds
        return limit is not None and self.seconds / self.engine.n_workers >= limit

    def _drop(self, candidates: Sequence[_Candidate]) -> None:
        for candidate in candidates:
            self.study.tell(candidate.trial, state=TrialState.PRUNED)

    def _jobs(self) -> list[TrainingJob]:
        shared = self.engine.share(self.task)
        return [
            resumable_job(
                self.engine.workspace,
                shared,
                candidate.spec,
                epochs=self._epochs(candidate),
                schedule_epochs=self.budget.epochs,
                seed=self.searcher.seed,
                device=self.searcher.device,
            )
            for candidate in self.active
        ]

    def _train(self, jobs: Sequence[TrainingJob], remembered: int) -> dict[int, TrialRecord]:
        """Train the active candidates; when time runs out, only some of them have a record.

        What the engine remembers comes first and is always taken, so that a search that is resumed
        knows at least what it knew before.
        """
        # The longest first: a round is over when its last training is.
        order = sorted(
            range(len(jobs)),
            key=lambda i: -self.active[i].seconds_per_epoch * self._epochs(self.active[i]),
        )
        records: dict[int, TrialRecord] = {}
        for position, result in self.engine.run([jobs[i] for i in order]):
            i = order[position]
            records[i] = self._record(self.active[i], result)
            known = [*self.history, *records.values()]
            # `fsum` does not depend on the order: a resumed search stops where the first one did.
            self.seconds = math.fsum(record.seconds for record in known)
            self._tell_progress(known, len(records))
            if len(records) >= remembered and self._out_of_time():
                break
        self.history += [records[i] for i in sorted(records)]
        return records

    def _record(self, candidate: _Candidate, result: TrainingResult) -> TrialRecord:
        candidate.seconds_per_epoch = result.seconds / result.epochs
        return TrialRecord(
            candidate.number,
            candidate.spec,
            result.epochs,
            result.score,
            result.seconds,
            result.diverged,
        )

    def _goes_on(self, candidate: _Candidate, record: TrialRecord) -> bool:
        if record.diverged:
            self._drop([candidate])
            return False
        if self._epochs(candidate) == self.budget.epochs:
            self.study.tell(candidate.trial, record.score)
            return False
        if candidate.trial.should_prune():
            self._drop([candidate])
            return False
        candidate.rung += 1
        return True

    def _tell_progress(self, records: list[TrialRecord], done: int) -> None:
        if self.callback is not None:
            limit = self.budget.seconds
            self.callback(
                SearchProgress(
                    started=self.started,
                    allowed=self.allowed,
                    round=self.rounds,
                    done=done,
                    trainings=len(self.active),
                    epoch=max(self._epochs(candidate) for candidate in self.active),
                    epochs=self.budget.epochs,
                    best=max(records, key=lambda record: (not record.diverged, record.score)),
                    seconds=self.seconds,
                    allowed_seconds=None if limit is None else limit * self.engine.n_workers,
                )
            )

    def result(self) -> SearchResult:
        """Return the best candidate of those that never diverged.

        One that did would diverge again in the final training, which repeats what was trained.

        Raises
        ------
        SearchError
            If every candidate diverged.
        """
        diverged = {record.trial for record in self.history if record.diverged}
        sound = [record for record in self.history if record.trial not in diverged]
        if not sound:
            raise SearchError(
                f"all {len(diverged)} candidates of the search on {self.task.name} diverged: "
                "allow more trials, or search a space with smaller learning rates",
                list(self.history),
            )
        best = max(sound, key=lambda record: record.score)
        return SearchResult(best.spec, best.score, self.seconds, tuple(self.history))


@contextmanager
def _study(searcher: HyperbandSearcher, task: Task, budget: SearchBudget) -> Iterator[optuna.Study]:
    """Open a fresh study.

    One that a killed run left is replaced: its trainings are remembered by the engine, so going
    through them again costs nothing and decides the same.
    """
    storage = None if searcher.storage is None else _open_storage(searcher.storage)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # The pruner assigns brackets by the study's name, so the name must be the same every time.
    name = f"hyperband {task.fingerprint[:16]}"
    try:
        if storage is not None and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        yield optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            pruner=RoundPruner(budget.epochs, searcher.reduction_factor),
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    storage = optuna.storages.RDBStorage(url)
    storage.engine.dispose()  # the connections that Optuna has opened by now are not tuned
    tune(storage.engine)
    return storage
