"""What an observer of a run can hook into; every hook does nothing by default."""

from trautoml.grouping import Decision
from trautoml.outcome import Outcome
from trautoml.search import SearchProgress
from trautoml.task import Task


class Callbacks:
    """Override what you need. Hooks are called in the thread that called `fit`."""

    def task_started(self, task: Task) -> None:
        """React to the begin of work on a task."""

    def features_progress(self, task: Task, done: int, total: int) -> None:
        """React to more images of which a backbone has made features."""

    def probes_progress(self, task: Task, done: int, total: int) -> None:
        """React to a finished trial, the `done`-th of T × B."""

    def decided(self, task: Task, decision: Decision, sentence: str) -> None:
        """React to the grouper's decision; `sentence` says it for people."""

    def search_progress(self, task: Task, progress: SearchProgress) -> None:
        """React to a finished training of the search."""

    def training_progress(self, task: Task, epoch: int, epochs: int, score: float) -> None:
        """React to a finished epoch of the final training."""

    def task_finished(self, outcome: Outcome) -> None:
        """React to a task that is fitted and in the store, or was before."""
