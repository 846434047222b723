"""An engine that remembers: a finished training is never run again."""

from collections.abc import Iterator, Sequence
from typing import Any

from trautoml.engine import Engine, Job, Result, SharedTask
from trautoml.errors import EngineError
from trautoml.jobs import TrainingJob
from trautoml.store import Store
from trautoml.task import Task


class RecordingEngine(Engine):
    """Runs jobs on another engine and keeps the results of trainings in a store.

    So it does with those of any job that has a `task` and a `result_type`, a class with `to_json`
    and `from_json`.

    Parameters
    ----------
    engine : Engine
        Does the work; it is not closed with this one.
    store : Store
        Remembers it.
    """

    def __init__(self, engine: Engine, store: Store) -> None:
        super().__init__(engine.workspace, engine.device)
        self.n_workers = engine.n_workers
        self._engine = engine
        self._store = store

    def share(self, task: Task) -> SharedTask:
        """Share by the inner engine."""
        return self._engine.share(task)

    def release(self, task: Task | SharedTask) -> None:
        """Release by the inner engine."""
        self._engine.release(task)

    def run(self, jobs: Sequence[Job[Result]]) -> Iterator[tuple[int, Result]]:
        """Yield what the store remembers, then run the others, keeping each as it finishes."""
        waiting: list[int] = []
        for index, job in enumerate(jobs):
            known = self._known(job)
            if known is None:
                waiting.append(index)
            else:
                yield index, known
        done = 0
        for position, result in self._engine.run([jobs[index] for index in waiting]):
            self._keep(jobs[waiting[position]], result)
            done += 1
            yield waiting[position], result
        if done != len(waiting):
            raise EngineError(
                f"expected {len(waiting)} results of {type(self._engine).__name__}, got {done}: "
                "an engine must run every job"
            )

    def remembers(self, job: Job[Result]) -> bool:
        """Whether the store has the job's result."""
        return self._known(job) is not None

    def _known(self, job: Any) -> Any:
        # A final training is not done before its weights are there to be kept.
        if isinstance(job, TrainingJob):
            missing = job.test and not job.checkpoint_is_there
            return None if missing else self._store.training(job.key)
        if hasattr(job, "result_type"):
            return self._store.result(job.key, job.result_type.from_json)
        return None

    def _keep(self, job: Any, result: Any) -> None:
        if isinstance(job, TrainingJob):
            self._store.add_training(job, result)
        elif hasattr(job, "result_type"):
            self._store.add_result(job.key, job.task.fingerprint, result.to_json())
