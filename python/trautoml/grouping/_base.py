"""What every grouper is, and the decision that it makes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trautoml import _core
from trautoml.errors import GroupingError

Kind = Literal["opened", "joined", "split"]


@dataclass(frozen=True, eq=False)
class Decision:
    """What a grouper says about a task.

    Attributes
    ----------
    kind : {"opened", "joined", "split"}
        `opened`: no group is as probable as a new one. `joined`: the task is of a known group.
        `split`: a group was the most probable, but the test refused it.
    group : int
        The group that the task ends up in; for a new one the number of groups before it.
    posterior : float
        Probability of the cluster that won, in [0, 1]; for `split` that of the group refused.
        The first task has 1.
    log_posterior : ndarray of float64, shape (n_groups,)
        Natural logarithm of the probability of each group there was; what is missing to 1 lies on
        the empty clusters. Read only.
    statistic, p_value : float or None
        F and its p-value, if a test was made.
    tested_group : int or None
        The group that the test compared the task with.

    Raises
    ------
    GroupingError
        If kind is none of the three.
    """

    kind: Kind
    group: int
    posterior: float
    log_posterior: NDArray[np.float64]
    statistic: float | None = None
    p_value: float | None = None
    tested_group: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise GroupingError(
                f"expected kind 'opened', 'joined' or 'split', got {self.kind!r}: "
                "take the decision from predict_one"
            )
        log_posterior = np.array(self.log_posterior, dtype=np.float64)
        log_posterior.flags.writeable = False
        object.__setattr__(self, "log_posterior", log_posterior)

    def _scalars(self) -> tuple[object, ...]:
        return (
            self.kind,
            self.group,
            self.posterior,
            self.statistic,
            self.p_value,
            self.tested_group,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
            return NotImplemented
        return self._scalars() == other._scalars() and np.array_equal(
            self.log_posterior, other.log_posterior
        )

    def __hash__(self) -> int:
        return hash(self._scalars())

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that strict JSON can carry; a log posterior of -inf becomes None."""
        return {
            "kind": self.kind,
            "group": self.group,
            "posterior": self.posterior,
            "log_posterior": [v if math.isfinite(v) else None for v in self.log_posterior.tolist()],
            "statistic": self.statistic,
            "p_value": self.p_value,
            "tested_group": self.tested_group,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Decision":
        """Return the decision that `to_dict` described.

        Raises
        ------
        GroupingError
            If a key is missing or has a value of another type.
        """
        try:
            log_posterior = [-math.inf if v is None else float(v) for v in data["log_posterior"]]
            return cls(
                kind=data["kind"],
                group=int(data["group"]),
                posterior=float(data["posterior"]),
                log_posterior=np.array(log_posterior, dtype=np.float64),
                statistic=None if data["statistic"] is None else float(data["statistic"]),
                p_value=None if data["p_value"] is None else float(data["p_value"]),
                tested_group=None if data["tested_group"] is None else int(data["tested_group"]),
            )
        except (KeyError, TypeError) as error:
            raise GroupingError(
                f"expected a decision as Decision.to_dict writes it, got {dict(data)!r} "
                f"({error!r}): predict again"
            ) from error


class Grouper(ABC):
    """Decides to which group of earlier tasks a new task belongs.

    Ownership: a grouper copies what it keeps of a trials matrix, and never writes to its input.
    Thread safety: none; one thread at a time may use a grouper, `predict_one` included.

    Predicting and learning are apart because hours may lie between them: nothing is committed
    before the task's model exists.
    """

    @abstractmethod
    def predict_one(self, trials: ArrayLike) -> Decision:
        """Decide on a task and change nothing.

        Parameters
        ----------
        trials : array_like of float64, shape (T, B)
            Validation score of trial t of probe b. B is the same for all tasks.

        Raises
        ------
        GroupingError
            If the matrix is not valid for this grouper.
        """

    @abstractmethod
    def learn_one(self, trials: ArrayLike, decision: Decision | None = None) -> Decision:
        """Commit a task, and return the decision that was committed.

        Parameters
        ----------
        trials : array_like of float64, shape (T, B)
            As for `predict_one`.
        decision : Decision, optional
            What to commit; by default what `predict_one` says now.

        Raises
        ------
        GroupingError
            If the matrix is not valid, or the decision was made for another state. Nothing is
            committed then.
        """

    @property
    @abstractmethod
    def n_groups(self) -> int:
        """Number of groups so far."""

    @property
    @abstractmethod
    def labels_(self) -> NDArray[np.int64]:
        """Group of each committed task in order of arrival, shape (n_tasks,).

        Groups are numbered from 0 in order of creation.
        """


def as_trials(trials: ArrayLike) -> NDArray[np.float64]:
    """Return a checked copy of a trials matrix: C-contiguous float64 of shape (T, B).

    Raises
    ------
    GroupingError
        Unless it is a real matrix with T >= 1 and B >= 1, all finite and at most 1e6 in size.
    """
    try:
        given = np.asarray(trials)
    except (TypeError, ValueError) as error:  # ragged lists, objects that refuse
        raise GroupingError(
            f"expected a trials matrix of shape (T, B), got {type(trials).__name__} ({error}): "
            "give as many trials of every probe"
        ) from error
    if given.ndim != 2 or given.dtype.kind not in "fiub":
        raise GroupingError(
            "expected a trials matrix of real numbers of shape (T, B), one row a trial and one "
            f"column a probe, got shape {given.shape} and dtype {given.dtype}: convert it"
        )
    matrix = np.array(given, dtype=np.float64, order="C")
    try:
        _core.check_trials(matrix)
    except ValueError as error:
        raise GroupingError(str(error)) from None
    return matrix
