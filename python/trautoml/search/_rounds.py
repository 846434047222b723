"""Rounds of work under a budget: the part that all searchers share."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from trautoml.engine import Engine, Job
from trautoml.errors import SearchError
from trautoml.jobs import Ancestor, TrainingJob, TrainingResult, resumable_job
from trautoml.search._base import SearchBudget, SearchProgress, SearchResult, TrialRecord
from trautoml.spec import ModelSpec
from trautoml.task import Task

Record = Callable[[int, Any, float], TrialRecord]
"""``record(index, result, seconds)`` makes the record of the job with that index in its round."""


class Rounds:
    """Runs jobs round by round, keeps the history, watches the time and tells the progress.

    A job that is asked for twice in one search runs once: the second time it costs nothing.

    Parameters
    ----------
    task : Task
        What is searched for.
    budget : SearchBudget
        Its seconds are watched here; its trials are for the searcher to count, in `started`.
    engine : Engine
        Runs the jobs.
    callback : callable, optional
        Called with the progress after each job.
    allowed : int
        Candidates that the search may start.
    width : int, optional
        Jobs of a round, at most: of more workers than that, the others are idle, and their time
        is not to be spent. Default: a round keeps all workers busy.

    Attributes
    ----------
    history : list of TrialRecord
        Every score, in the order of decision.
    started : int
        Candidates started so far.
    """

    def __init__(
        self,
        task: Task,
        budget: SearchBudget,
        engine: Engine,
        callback: Callable[[SearchProgress], None] | None,
        *,
        allowed: int,
        width: int | None = None,
    ) -> None:
        self.task, self.budget, self.engine, self.allowed = task, budget, engine, allowed
        self.history: list[TrialRecord] = []
        self._busy = min(engine.n_workers, width or engine.n_workers)
        # Exact: the sum must not depend on the order, for a resumed search to stop where it did.
        self._seconds = Fraction(0)
        self._best: TrialRecord | None = None
        self.started = 0
        self._callback = callback
        self._count = 0
        self._results: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Worker seconds spent."""
        return float(self._seconds)

    @property
    def trained(self) -> int:
        """Jobs that were run or remembered so far; equal ones count once."""
        return len(self._results)

    @property
    def allowed_seconds(self) -> float | None:
        """Worker seconds that may be spent, if there is a limit."""
        limit = self.budget.seconds
        return None if limit is None else limit * self._busy

    @property
    def spent(self) -> float:
        """Share of the budget that is spent, in candidates or in time, at most 1."""
        in_time = 0.0 if self.allowed_seconds is None else self.seconds / self.allowed_seconds
        return min(1.0, max(in_time, self.started / self.allowed))

    def training(
        self, spec: ModelSpec, *, epochs: float, seed: int, ancestors: tuple[Ancestor, ...] = ()
    ) -> TrainingJob:
        """Make the job that trains a spec until `epochs`, on the schedule of a final training.

        With ancestors, on a schedule that ends there: what it comes to can be an ancestor itself.
        """
        return resumable_job(
            self.engine.workspace,
            self.engine.share(self.task),
            spec,
            epochs=epochs,
            schedule_epochs=epochs if ancestors else self.budget.epochs,
            seed=seed,
            device=self.engine.device,
            ancestors=ancestors,
        )

    def train(
        self, candidates: Sequence[tuple[int, ModelSpec]], *, seed: int, share: float = 1.0
    ) -> Mapping[int, TrialRecord]:
        """Train numbered specs from scratch for all epochs: one round; see `run`."""
        epochs = self.budget.epochs
        jobs = [self.training(spec, epochs=epochs, seed=seed) for _, spec in candidates]

        def record(index: int, result: TrainingResult, seconds: float) -> TrialRecord:
            return training_record(*candidates[index], result, seconds)

        return self.run(jobs, record, epoch=epochs, share=share)

    def run(
        self,
        jobs: Sequence[Job[Any]],
        record: Record,
        *,
        epoch: int,
        epochs: int | None = None,
        order: Sequence[int] | None = None,
        share: float = 1.0,
    ) -> Mapping[int, TrialRecord]:
        """Run one round; when time runs out, only some of its jobs have a record.

        What the engine remembers is always taken, so that a search that is resumed knows at least
        what it knew before.

        Parameters
        ----------
        jobs : sequence of Job
            The round. Their results have `seconds`.
        record : callable
            Makes the record of a result; it gets the seconds that are to be counted.
        epoch : int
            How far this round trains, for the progress.
        epochs : int, optional
            How far the last one of its kind does. Default: the budget's epochs.
        order : sequence of int, optional
            Indices of `jobs`, the first to start first. Default: as they are.
        share : float
            Share of the time limit after which no more is waited for.

        Returns
        -------
        mapping of int to TrialRecord
            By index, in order; empty if there is nothing to do or no time for it.
        """
        twins: dict[str, list[int]] = {}
        for index in order or range(len(jobs)):
            twins.setdefault(jobs[index].key, []).append(index)
        known = [key for key in twins if key in self._results]
        new = [jobs[indices[0]] for key, indices in twins.items() if key not in self._results]
        remembered = {job.key for job in new if self.engine.remembers(job)}
        if not jobs or (new and not remembered and self._out_of_time(share)):
            return {}
        self._count += 1
        until = epoch, epochs or self.budget.epochs
        records: dict[int, TrialRecord] = {}

        def add(key: str, seconds: float) -> None:
            for index in twins[key]:
                records[index] = record(index, self._results[key], seconds)
                self._add(records[index])
                seconds = 0.0
            self._tell(len(records), len(jobs), until)

        for key in known:
            add(key, 0.0)
        for position, result in self.engine.run(new):
            key = new[position].key
            self._results[key] = result
            add(key, result.seconds)
            remembered.discard(key)
            if not remembered and self._out_of_time(share):
                break
        records = dict(sorted(records.items()))
        self.history += records.values()
        return records

    def _out_of_time(self, share: float) -> bool:
        limit = self.allowed_seconds
        return limit is not None and self.seconds >= share * limit

    def _add(self, record: TrialRecord) -> None:
        self._seconds += Fraction(record.seconds)
        if self._best is None or _rank(record) > _rank(self._best):
            self._best = record

    def _tell(self, done: int, trainings: int, until: tuple[int, int]) -> None:
        if self._callback is not None and self._best is not None:
            self._callback(
                SearchProgress(
                    started=self.started,
                    allowed=self.allowed,
                    round=self._count,
                    done=done,
                    trainings=trainings,
                    epoch=until[0],
                    epochs=until[1],
                    best=self._best,
                    seconds=self.seconds,
                    allowed_seconds=self.allowed_seconds,
                )
            )

    def result(self) -> SearchResult:
        """Return the best candidate of those that were trained alone and never diverged.

        One that did would diverge again in the final training, which repeats what was trained.

        Raises
        ------
        SearchError
            If there is none.
        """
        diverged = {record.trial for record in self.history if record.diverged}
        sound = [r for r in self.history if r.alone and r.trial not in diverged]
        if not sound:
            raise SearchError(
                f"all {len(diverged)} candidates of the search on {self.task.name} diverged: "
                "allow more trials, search a space with smaller learning rates, or take another "
                "searcher; if a device ran out of memory, the log says so",
                list(self.history),
            )
        best = max(sound, key=lambda record: record.score)
        return SearchResult(best.spec, best.score, self.seconds, tuple(self.history))


def _rank(record: TrialRecord) -> tuple[bool, bool, float]:
    return not record.diverged, record.alone, record.score


def training_record(
    trial: int, spec: ModelSpec, result: TrainingResult, seconds: float, *, alone: bool = True
) -> TrialRecord:
    """Make the record of a training that cost this search so many seconds."""
    return TrialRecord(trial, spec, result.epochs, result.score, seconds, result.diverged, alone)


def trial_number(index: int, n_warm: int) -> int:
    """Give a candidate its number: -1, -2, ... for warm starts, which come first; then 0, 1, ..."""
    return -1 - index if index < n_warm else index - n_warm
