"""Callbacks that show a run: live on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trautoml.callbacks import Callbacks
from trautoml.duration import duration
from trautoml.grouping import Decision
from trautoml.outcome import Outcome
from trautoml.plain import plain
from trautoml.search import SearchProgress
from trautoml.task import Task

_LINE_EVERY = 10.0
"""Seconds between two progress lines where the output is no terminal."""


class _Report(Callbacks):
    """What both kinds of output say in the same words."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Print a line; names of tasks may contain anything, so no markup is read."""
        indent = "  " if text.startswith("  ") else ""
        self.console.print(indent + plain(text), markup=False, highlight=False, soft_wrap=True)

    def task_started(self, task: Task) -> None:
        height, width, channels = task.image_shape
        self.say(
            f"{task.name}: {task.n_train} training images {height}×{width}×{channels}, "
            f"{task.n_classes} classes"
        )

    def decided(self, task: Task, decision: Decision, sentence: str) -> None:
        self.say(f"  {sentence}")

    def task_finished(self, outcome: Outcome) -> None:
        if outcome.restored:
            self.say(
                f"{outcome.entry.name}: fitted before, test accuracy {outcome.test_score:.3f}; "
                "nothing to do"
            )
            return
        price = ", ".join(
            f"{phase} {duration(seconds)}" for phase, seconds in outcome.seconds.items() if seconds
        )
        self.say(f"  test accuracy {outcome.test_score:.3f}; {price}{_saving(outcome)}")


class LogCallbacks(_Report):
    """Plain lines, for the same phase one every ten seconds at most, and at its end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._last = 0.0

    def features_progress(self, task: Task, done: int, total: int) -> None:
        if done == total or self._due():
            self.say(f"  features of {done}/{total} images")

    def probes_progress(self, task: Task, done: int, total: int) -> None:
        if done == total or self._due():
            self.say(f"  probes {done}/{total}")

    def search_progress(self, task: Task, progress: SearchProgress) -> None:
        if progress.done == progress.trainings or self._due():
            self.say(f"  {_search_text(progress)}")

    def training_progress(self, task: Task, epoch: int, epochs: int, score: float) -> None:
        if epoch == epochs or self._due():
            self.say(f"  training epoch {epoch}/{epochs}, validation accuracy {score:.3f}")

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY:
            return False
        self._last = now
        return True


class LiveCallbacks(_Report):
    """A progress bar for the phase that runs, with the time that is left. Use as a context."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._phase: tuple[str, TaskID] | None = None

    def __enter__(self) -> "LiveCallbacks":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def features_progress(self, task: Task, done: int, total: int) -> None:
        self._show(f"{task.name}: features", done, total, "")

    def probes_progress(self, task: Task, done: int, total: int) -> None:
        self._show(f"{task.name}: probes", done, total, "")

    def decided(self, task: Task, decision: Decision, sentence: str) -> None:
        self._end()
        super().decided(task, decision, sentence)

    def search_progress(self, task: Task, progress: SearchProgress) -> None:
        note = f"best {progress.best.score:.3f}"
        if progress.allowed_seconds is None:
            text = f"{task.name}: search round {progress.round}"
            self._show(text, progress.done, progress.trainings, note)
        else:
            done, total = round(progress.seconds), round(progress.allowed_seconds)
            note = f"seconds, round {progress.round}, {note}"
            self._show(f"{task.name}: search", min(done, total), total, note)

    def training_progress(self, task: Task, epoch: int, epochs: int, score: float) -> None:
        self._show(f"{task.name}: training", epoch, epochs, f"accuracy {score:.3f}")

    def task_finished(self, outcome: Outcome) -> None:
        self._end()
        super().task_finished(outcome)

    def _show(self, text: str, done: int, total: int, note: str) -> None:
        description = plain(text)
        if self._phase is None or self._phase[0] != description:
            self._end()
            self._phase = description, self._progress.add_task(description, total=total, note=note)
        self._progress.update(self._phase[1], completed=done, total=total, note=note)

    def _end(self) -> None:
        if self._phase is not None:
            self._progress.remove_task(self._phase[1])
            self._phase = None


def _search_text(progress: SearchProgress) -> str:
    where = f"round {progress.round} (to epoch {progress.epoch} of {progress.epochs})"
    done = f"{progress.done} of {progress.trainings} trainings of {where} done"
    if progress.allowed_seconds is not None:
        spent, allowed = duration(progress.seconds), duration(progress.allowed_seconds)
        done = f"{done}, {spent} of {allowed} of worker time"
    return f"search: {done}, best validation accuracy {progress.best.score:.3f}"


def _saving(outcome: Outcome) -> str:
    if outcome.entry.searched or not outcome.entry.search_estimate:
        return ""
    return f"; a search would have cost about {duration(outcome.entry.search_estimate)}"
