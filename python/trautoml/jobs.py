"""Trainings as an engine runs them: what to train, until when, and what it came to."""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from trautoml.engine import SharedTask
from trautoml.spec import ModelSpec
from trautoml.training import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What one training came to.

    Attributes
    ----------
    score : float
        Validation accuracy in [0, 1]; the task's chance level if the training diverged.
    test_score : float or None
        Test accuracy, where it was asked for.
    epochs : float
        Epochs trained in all; below what was asked for only if the time ran out (it may be 0
        then), or if the training diverged: it stops at the end of that epoch.
    seconds : float
        Time of this piece of training and its evaluation, on one worker; where the same job wrote
        its checkpoint before and then was killed, with the time that it took then; with that of
        the ancestors that had to be trained again.
    diverged : bool
        Whether the loss or the outputs on validation images became infinite or NaN, or the memory
        of a CUDA device ran out; or this befell an ancestor in training.
    """

    score: float
    test_score: float | None
    epochs: float
    seconds: float
    diverged: bool


@dataclass(frozen=True)
class Ancestor:
    """A finished training whose weights another one began with.

    Parameters
    ----------
    spec : ModelSpec
        What was trained.
    epochs : float
        For how long; its learning rate fell to 0 over these epochs.
    """

    spec: ModelSpec
    epochs: float


@dataclass(frozen=True)
class TrainingJob:
    """One training, or the next piece of one, as an engine runs it.

    The result is a function of all fields but `checkpoint` and `device`: a checkpoint only saves
    the epochs that an earlier job of the same training has done.

    Parameters
    ----------
    task : SharedTask
        From `Engine.share`.
    spec : ModelSpec
        What to train.
    epochs : float
        Train until this many epochs are done; a fraction sees a random part of the images.
    schedule_epochs : float, optional
        The learning rate falls to 0 over this many epochs. Default: `epochs`.
    seconds : float, optional
        Stop earlier when this much time has passed.
    seed : int
        Draws initial weights and batch order.
    max_val : int, optional
        Score on at most this many validation images, the same ones for every training.
    test : bool
        Evaluate on the test split too.
    device : str
        ``"auto"`` (CUDA if present), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` and so on.
    checkpoint : Path, optional
        File to go on from, if it is there, and to leave the state in.
    ancestors : tuple of Ancestor
        The line of trainings that the initial weights come from, the oldest first: it was trained
        from scratch, and each further one and this job from what the one before it came to (see
        `Trainer.inherit`), all with the same seed. The parent's checkpoint is looked for in the
        folder of this job's, and made there if it is missing. Default: none, weights are drawn.
    """

    task: SharedTask
    spec: ModelSpec
    epochs: float
    schedule_epochs: float | None = None
    seconds: float | None = None
    seed: int = 0
    max_val: int | None = None
    test: bool = False
    device: str = "auto"
    checkpoint: Path | None = None
    ancestors: tuple[Ancestor, ...] = ()

    @property
    def key(self) -> str:
        """Name of the result: a hash of everything that determines it."""
        schedule = self.schedule_epochs or self.epochs
        content = [self.task.fingerprint, self.spec.to_json(), float(self.epochs), float(schedule)]
        seconds = None if self.seconds is None else float(self.seconds)
        content += [seconds, self.seed, self.max_val, self.test]
        if self.ancestors:  # else the key is what stores of earlier versions have
            content.append(_line(self.ancestors))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def checkpoint_is_there(self) -> bool:
        """Whether the file that the job leaves its state in exists."""
        return self.checkpoint is not None and self.checkpoint.is_file()

    def run(self) -> TrainingResult:
        """Train and evaluate.

        Raises
        ------
        InputError
            If the device, the epochs or `max_val` are not possible, the device has no room for
            the task, or the ancestors and `spec` are not chains each one morphism step from the
            next.
        OSError
            If the checkpoint can't be written.
        """
        started = time.perf_counter()
        try:
            return self._run(started)
        except torch.cuda.OutOfMemoryError as error:
            _log.warning(
                "a training ran out of memory on its device and counts as diverged (%s): %s",
                str(error).partition("\n")[0],
                self.spec.to_json(),
            )
        # Only now is nothing held any more by what was under way.
        torch.cuda.empty_cache()
        trainer = Trainer(self.task.load(), self.spec, seed=self.seed, device="cpu")
        trainer.give_up()
        return self._finish(trainer, started)

    def _run(self, started: float) -> TrainingResult:
        trainer = Trainer(self.task.load(), self.spec, seed=self.seed, device=self.device)
        resumed = self.checkpoint is not None and trainer.load(self.checkpoint, at_most=self.epochs)
        if self.ancestors and not resumed:
            self._inherit(trainer)
        if trainer.notes.get("job") == self.key:
            # This very job wrote it, and was killed before its result was recorded.
            started -= float(trainer.notes["seconds"])
        trainer.train(
            self.epochs, schedule_epochs=self.schedule_epochs or self.epochs, seconds=self.seconds
        )
        return self._finish(trainer, started)

    def _inherit(self, trainer: Trainer) -> None:
        """Begin with the parent's weights; train the parent if its checkpoint isn't there."""
        *older, last = self.ancestors
        with tempfile.TemporaryDirectory(prefix="trautoml-") as temporary:
            folder = self.checkpoint.parent if self.checkpoint else Path(temporary)
            file = folder / _checkpoint_name(last.spec, self.seed, last.epochs, older)
            parent = TrainingJob(
                self.task,
                last.spec,
                last.epochs,
                seed=self.seed,
                device=self.device,
                checkpoint=file,
                ancestors=tuple(older),
            )
            if _writer(file) != parent.key:  # it isn't there, or not trained to its end
                parent.run()
            trainer.inherit(file, last.spec)

    def _finish(self, trainer: Trainer, started: float) -> TrainingResult:
        """Evaluate, and leave the state and the time since `started` in the checkpoint."""
        score = trainer.evaluate("val", self.max_val)
        diverged = trainer.diverged
        test_score = trainer.evaluate("test") if self.test else None
        if self.checkpoint is not None:
            spent = time.perf_counter() - started
            trainer.save(self.checkpoint, {"job": self.key, "seconds": repr(spent)})
        return TrainingResult(
            score=score,
            test_score=test_score,
            epochs=trainer.epochs,
            seconds=time.perf_counter() - started,
            diverged=diverged,
        )


def resumable_job(
    workspace: Path,
    task: SharedTask,
    spec: ModelSpec,
    *,
    epochs: float,
    schedule_epochs: float,
    seed: int,
    device: str,
    test: bool = False,
    ancestors: tuple[Ancestor, ...] = (),
) -> TrainingJob:
    """Make a job that goes on from where the last one of the same training stopped."""
    name = _checkpoint_name(spec, seed, schedule_epochs, ancestors)
    return TrainingJob(
        task,
        spec,
        epochs,
        schedule_epochs=schedule_epochs,
        seed=seed,
        test=test,
        device=device,
        checkpoint=checkpoint_folder(workspace, task.fingerprint) / name,
        ancestors=ancestors,
    )


def checkpoint_folder(workspace: Path, fingerprint: str) -> Path:
    """Where the checkpoints of a task's trainings lie."""
    return workspace / "checkpoints" / fingerprint


def _checkpoint_name(
    spec: ModelSpec, seed: int, schedule_epochs: float, ancestors: Sequence[Ancestor]
) -> str:
    """Name the file of a training, whichever piece of it a job runs."""
    name = f"{spec.digest}-{seed}-{float(schedule_epochs)!r}"
    if ancestors:
        line = json.dumps(_line(ancestors))
        name += f"-{hashlib.sha256(line.encode()).hexdigest()[:16]}"
    return f"{name}.safetensors"


def _line(ancestors: Sequence[Ancestor]) -> list[tuple[str, float]]:
    return [(ancestor.spec.to_json(), float(ancestor.epochs)) for ancestor in ancestors]


def _writer(checkpoint: Path) -> str | None:
    """Key of the job that wrote a checkpoint when it was done; None if there is no whole one."""
    try:
        with safe_open(checkpoint, framework="pt") as stored:
            key: str | None = stored.metadata().get("job")
            return key
    except (FileNotFoundError, SafetensorError):
        return None
