"""What an observer of a run can hook into; every hook does nothing by default."""

from typing import TYPE_CHECKING

from trautoml.grouping import Decision
from trautoml.search import SearchProgress
from trautoml.task import Task

if TYPE_CHECKING:
    from trautoml.automl import Outcome


class Callbacks:
    """Override what you need. Hooks are called in the thread that called `fit`."""

    def task_started(self, task: Task) -> None:
        """Work on a task begins."""

    def probes_progress(self, task: Task, done: int, total: int) -> None:
        """`done` of T × B trials are finished."""

    def decided(self, task: Task, decision: Decision, sentence: str) -> None:
        """The grouper has decided; `sentence` says it for people."""

    def search_progress(self, task: Task, progress: SearchProgress) -> None:
        """A training of the search is finished."""

    def training_progress(self, task: Task, epoch: int, epochs: int, score: float) -> None:
        """An epoch of the final training is finished."""

    def task_finished(self, outcome: "Outcome") -> None:
        """The task is fitted and in the store."""
