"""What trainings on a task are given: its images, or the features that a backbone makes of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

from trautoml.backbones import FrozenBackbone
from trautoml.engine import Engine, SharedTask
from trautoml.features import compute_features, fingerprint_of_features
from trautoml.jobs import checkpoint_folder
from trautoml.task import Task


class Inputs:
    """Prepares tasks for trainings, and clears up after them.

    Parameters
    ----------
    engine : Engine
        Computes features, and keeps them in its workspace.
    backbone : FrozenBackbone, optional
        Makes features of images. Default: trainings are given the images.
    """

    def __init__(self, engine: Engine, backbone: FrozenBackbone | None = None) -> None:
        self._engine = engine
        self._backbone = backbone

    def prepare(
        self, task: Task, callback: Callable[[int, int], None] | None = None
    ) -> tuple[Task, float]:
        """Give what trainings on a task are given, and the worker seconds that making it took.

        Features are computed once, by however many runs, and stay on the disk until `remove`.

        Parameters
        ----------
        task : Task
            The images.
        callback : callable, optional
            Called with (images done, images in all) while features are computed.

        Raises
        ------
        EngineError
            If the work could not be run; call again to go on.
        OSError
            If the features can't be written.
        """
        if self._backbone is None:
            return task, 0.0
        folder = self._folder(fingerprint_of_features(task, self._backbone))
        found = compute_features(task, self._backbone, self._engine, folder, callback)
        return found.task, found.seconds

    def remove(self, task: Task) -> None:
        """Remove features, checkpoints and copies: what only unfinished work on a task needs."""
        self._engine.release(task)
        fingerprint = task.fingerprint
        if self._backbone is not None:
            fingerprint = fingerprint_of_features(task, self._backbone)
            shutil.rmtree(self._folder(fingerprint), ignore_errors=True)
            # They are copied where their folder was gone when they were shared.
            self._engine.release(SharedTask(fingerprint))
        folder = checkpoint_folder(self._engine.workspace, fingerprint)
        shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, fingerprint: str) -> Path:
        return self._engine.workspace / "features" / fingerprint
