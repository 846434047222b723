"""An engine for tests: it may score trainings by a script, and remembers every result."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trautoml.engine import Engine, Job, Result, SharedTask
from trautoml.jobs import TrainingJob, TrainingResult
from trautoml.task import Task

Script = Callable[[TrainingJob], TrainingResult]
"""Gives the result of a training, which is not run."""

_work: dict[str, Any] = {}
"""Results of jobs that are no trainings, by key: each is run once in this process."""


def by_merit(job: TrainingJob) -> TrainingResult:
    """Score a training in [0, 1) and time it in [0.5, 1.5) s, by nothing but its key."""
    merit = int(job.key[:13], 16) / 16**13
    return TrainingResult(merit, None, job.epochs, 0.5 + merit, diverged=False)


class FakeEngine(Engine):
    """Runs jobs in this process and remembers their results as a store would.

    Trainings are scored by a script. Other jobs are run, once in this process for each key, and
    take 1 s. So what comes out does not depend on the clock.

    Parameters
    ----------
    script : callable or None
        Scores trainings. None: all jobs are run, and take the time that they take.
    n_workers : int
        As many as it pretends to have.
    shuffle : int, optional
        Seed of the order in which jobs finish. Default: the order in which they are given.
    memory : mapping of str to object, optional
        Results that are remembered from the start, by key: the `memory` of another engine.
    interrupt_after : int, optional
        Raise KeyboardInterrupt, as Ctrl-C does, once so many jobs are done and more are to do.

    Attributes
    ----------
    executed : list of (Job, result)
        What was not remembered, in the order in which it finished.
    memory : dict of str to object
        Results of all jobs that a store would remember, by key.
    """

    def __init__(
        self,
        script: Script | None = by_merit,
        *,
        n_workers: int = 1,
        shuffle: int | None = None,
        memory: Mapping[str, Any] | None = None,
        interrupt_after: int | None = None,
    ) -> None:
        super().__init__(device="cpu")
        self.n_workers = n_workers
        self.executed: list[tuple[Any, Any]] = []
        self.memory = dict(memory or {})
        self._script = script
        self._rng = None if shuffle is None else np.random.default_rng(shuffle)
        self._interrupt_after = interrupt_after

    def share(self, task: Task) -> SharedTask:
        """Hand the task itself over."""
        return SharedTask(task.fingerprint, task=task)

    def remembers(self, job: Job[Result]) -> bool:
        """Whether the memory has the job's result."""
        return job.key in self.memory

    def run(self, jobs: Sequence[Job[Result]]) -> Iterator[tuple[int, Result]]:
        """Yield what is remembered, then run the others."""
        known = [index for index, job in enumerate(jobs) if self.remembers(job)]
        new = [index for index in range(len(jobs)) if index not in known]
        for index in self._ordered(known):
            yield index, self.memory[jobs[index].key]
        for index in self._ordered(new):
            if len(self.executed) == self._interrupt_after:
                raise KeyboardInterrupt
            job = jobs[index]
            result = self._result(job)
            self.executed.append((job, result))
            self._remember(job, result)
            yield index, result

    def _ordered(self, indices: list[int]) -> list[int]:
        return indices if self._rng is None else [int(i) for i in self._rng.permutation(indices)]

    def _result(self, job: Any) -> Any:
        if self._script is None:
            return job.run()
        if isinstance(job, TrainingJob):
            return self._script(job)
        if job.key not in _work:
            _work[job.key] = job.run()
        result = _work[job.key]
        return dataclasses.replace(result, seconds=1.0)

    def _remember(self, job: Any, result: Any) -> None:
        if isinstance(job, TrainingJob):
            self.memory[job.key] = result
        elif hasattr(job, "result_type"):
            self.memory[job.key] = job.result_type.from_json(result.to_json())
