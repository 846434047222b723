"""One fitted task, as the log keeps it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trautoml.grouping import Decision
from trautoml.spec import ModelSpec


@dataclass(frozen=True)
class LogEntry:
    """One fitted task as the store keeps it, in order of arrival.

    Attributes
    ----------
    position : int
        0 for the first task.
    fingerprint, name : str
        The task.
    n_train : int
        Its training images.
    image_shape : tuple of int
        ``(H, W, C)``.
    class_names : tuple of str
        Its classes.
    trials : ndarray of float64, shape (T, B)
        Its trials matrix.
    decision : Decision
        What the grouper decided.
    spec : ModelSpec
        The model it uses.
    searched : bool
        Whether the spec was searched for this task (else it was reused).
    score, test_score : float
        Validation and test accuracy of the final model.
    seconds : dict of str to float
        Worker seconds of ``"probes"``, ``"search"`` and ``"training"``, and of ``"features"`` if
        there is a backbone.
    search_estimate : float
        Worker seconds of a search on this task: measured if there was one, else estimated.
    wall_seconds : float
        Elapsed time of the run that finished the task.
    """

    position: int
    fingerprint: str
    name: str
    n_train: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    trials: npt.NDArray[np.float64]
    decision: Decision
    spec: ModelSpec
    searched: bool
    score: float
    test_score: float
    seconds: dict[str, float]
    search_estimate: float
    wall_seconds: float

    @property
    def spent_seconds(self) -> float:
        """Worker seconds of everything that was done for this task."""
        return sum(self.seconds.values())

    @property
    def standalone_seconds(self) -> float:
        """Worker seconds of a search without probes: its winner comes out of it trained.

        Where there is a backbone, its features have to be computed for a search too.
        """
        training = self.seconds["training"] if self.searched else 0.0
        return self.seconds.get("features", 0.0) + self.search_estimate + training

    @property
    def saved_seconds(self) -> float:
        """What the task cost less than a search: after a search, minus the cost of the probes."""
        return self.standalone_seconds - self.spent_seconds
