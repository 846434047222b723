"""The paper's grouper: sequential clustering with a Markov prior and a test of every join."""

import logging
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trautoml import _core
from trautoml.errors import GroupingError
from trautoml.grouping._base import Decision, Grouper, Kind, as_trials

logger = logging.getLogger("trautoml")

KINDS: tuple[Kind, Kind, Kind] = ("opened", "joined", "split")
"""Kinds of decision by their code in the core and in `Replay.kinds`."""


@contextmanager
def _core_errors() -> Iterator[None]:
    """Turn the core's errors, which name what was expected, into the package's own."""
    try:
        yield
    except ValueError as error:
        raise GroupingError(str(error)) from None


def _number(name: str, value: float) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    raise GroupingError(f"expected a real number for {name}, got {value!r}")


def _integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    try:
        result = operator.index(value)
    except TypeError:
        result = low - 1
    if isinstance(value, bool) or not low <= result <= high:
        raise GroupingError(f"expected an integer {name} from {low} to {high}, got {value!r}")
    return result


class MarkovGrouper(Grouper):
    """Group tasks by the posterior of K clusters and Hotelling's test (section 2 of the paper).

    A new task goes to the most probable of the groups and of the empty clusters that stand for
    kinds of task not yet seen. If that is a group, its trials are tested against the task's, and
    where the means differ at level `alpha` the task opens a group of its own.

    The state is a function of the parameters and of the ordered log of (trials, decision), and
    `from_log` rebuilds it bit by bit. When the last empty cluster is taken, K doubles.

    Parameters
    ----------
    n_clusters : int
        K, number of clusters at the start, from 1 to 1e9.
    gamma : float
        In [0, inf]. The prior of an empty cluster is exp(-gamma * n_groups) in all; 0 never joins,
        inf always does until a test refuses.
    alpha : float
        Level of the test in [0, 1); 0 switches it off. Otherwise every task needs T > B trials.
    sigma0_sq : float
        In [1e-100, 1e100], in squared scores. An empty cluster has covariance
        S0 = sigma0_sq * K**(-1/B) * identity.
    covariance : {"trials", "paper"}
        `trials`: of all trial vectors of a group about its mean. `paper`: Eq. 14 for one member and
        Eq. 13 for more.
    pairing : {"anderson", "average"}
        How the test pairs trials; `average` needs the same T for all tasks.
    prior_strength : float
        In [0, 1e100]: how many vectors S0 counts for in a group's covariance.
    score_resolution : float
        In [0, 1e100]: the step to which scores are rounded, 1/n_validation for accuracies.
    preset_low, preset_high : float
        Bounds of the uniform means of the empty clusters, the range of the scores.
    seed : int
        Of those means, at least 0.

    Raises
    ------
    GroupingError
        If a parameter is out of its range.
    """

    def __init__(
        self,
        n_clusters: int = 1000,
        gamma: float = 0.2,
        alpha: float = 0.005,
        sigma0_sq: float = 3e-4,
        covariance: str = "trials",
        pairing: str = "anderson",
        prior_strength: float = 1.0,
        score_resolution: float = 1e-3,
        preset_low: float = 0.0,
        preset_high: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._n_clusters = _integer("n_clusters", n_clusters, 1, 10**9)
        self._seed = _integer("seed", seed, 0, 2**64 - 1)
        self._preset_low = _number("preset_low", preset_low)
        self._preset_high = _number("preset_high", preset_high)
        if not -1e6 <= self._preset_low < self._preset_high <= 1e6:
            raise GroupingError(
                "expected -1e6 <= preset_low < preset_high <= 1e6, "
                f"got {preset_low!r} and {preset_high!r}: give the range of the scores"
            )
        for name, value in (("covariance", covariance), ("pairing", pairing)):
            if not isinstance(value, str):
                raise GroupingError(f"expected a string for {name}, got {value!r}")
        self._core_params: dict[str, Any] = {
            "gamma": _number("gamma", gamma),
            "alpha": _number("alpha", alpha),
            "sigma0_sq": _number("sigma0_sq", sigma0_sq),
            "covariance": covariance,
            "pairing": pairing,
            "prior_strength": _number("prior_strength", prior_strength),
            "score_resolution": _number("score_resolution", score_resolution),
        }
        with _core_errors():
            self._parameters = _core.MarkovParameters(**self._core_params)
        self._state: _core.MarkovState | None = None
        self._log: list[tuple[NDArray[np.float64], Decision]] = []

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "n_clusters": self._n_clusters,
            **self._core_params,
            "preset_low": self._preset_low,
            "preset_high": self._preset_high,
            "seed": self._seed,
        }

    @classmethod
    def from_log(
        cls, params: dict[str, Any], log: Iterable[tuple[ArrayLike, Decision]]
    ) -> "MarkovGrouper":
        """Rebuild a grouper from its `params` and its (trials, decision) in order of arrival.

        The state is bit-equal to that of the grouper that made the log.

        Raises
        ------
        GroupingError
            If a parameter, a matrix or a decision doesn't fit.
        """
        grouper = cls(**params)
        for trials, decision in log:
            grouper.learn_one(trials, decision)
        return grouper

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_log, (self.params, self._log)

    def __repr__(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"<MarkovGrouper({params}): {len(self._log)} tasks in {self.n_groups} groups>"

    def predict_one(self, trials: ArrayLike) -> Decision:
        """Decide on a task and change nothing; see `Grouper.predict_one`.

        Raises
        ------
        GroupingError
            Also if T <= B (with alpha > 0), if B isn't that of the tasks before, and if a matrix is
            singular, which `prior_strength` or `score_resolution` above 0 prevents.
        """
        return self._predict(as_trials(trials))

    def learn_one(self, trials: ArrayLike, decision: Decision | None = None) -> Decision:
        """Commit a task; see `Grouper.learn_one`. Raises as `predict_one` does."""
        matrix = as_trials(trials)
        if decision is None:
            decision = self._predict(matrix)
        state = self._state_for(matrix.shape[1])
        kind = KINDS.index(decision.kind)
        n_before = state.n_clusters
        # numpy fills the presets row by row, so a longer draw begins with the same rows.
        fresh = (
            self._presets(2 * n_before, state.n_probes)[n_before:]
            if state.needs_fresh(kind)
            else np.empty((0, state.n_probes))
        )
        with _core_errors():
            state.commit(matrix, kind, decision.group, fresh)
        self._log.append((matrix, decision))
        if state.n_clusters != n_before:
            logger.info(
                "all %d preset clusters are taken: going on with %d", n_before, state.n_clusters
            )
        return decision

    def log_posterior(self, trials: ArrayLike) -> NDArray[np.float64]:
        """Log posterior of a task over all K clusters, shape (K,): groups, then empty clusters.

        Groups come in order of creation and empty clusters in order of their presets. For the
        first task all of it lies on the nearest preset. Raises as `predict_one` does.
        """
        matrix = as_trials(trials)
        with _core_errors():
            return self._state_for(matrix.shape[1]).log_posterior(matrix)

    @property
    def n_groups(self) -> int:
        """Number of groups so far."""
        return 0 if self._state is None else self._state.n_groups

    @property
    def n_clusters(self) -> int:
        """K at present, groups included; it doubles when the last empty cluster is taken."""
        return self._n_clusters if self._state is None else self._state.n_clusters

    @property
    def labels_(self) -> NDArray[np.int64]:
        """Group of each committed task in order of arrival, shape (n_tasks,)."""
        return np.empty(0, dtype=np.int64) if self._state is None else self._state.labels

    @property
    def means_(self) -> NDArray[np.float64]:
        """Mean of each group, shape (n_groups, B); (0, 0) before the first task."""
        return self._state.means if self._log and self._state else np.empty((0, 0))

    @property
    def covariances_(self) -> NDArray[np.float64]:
        """Regularised covariance Sigma_k of each group, shape (n_groups, B, B)."""
        return self._state.covariances if self._log and self._state else np.empty((0, 0, 0))

    def _predict(self, matrix: NDArray[np.float64]) -> Decision:
        with _core_errors():
            found = self._state_for(matrix.shape[1]).predict(matrix)
        return Decision(
            kind=KINDS[found.kind],
            group=found.group,
            posterior=found.posterior,
            log_posterior=found.log_posterior,
            statistic=found.statistic,
            p_value=found.p_value,
            tested_group=found.tested_group,
        )

    def _state_for(self, n_probes: int) -> _core.MarkovState:
        # Only a committed task fixes B; until then a state without tasks is made for what comes.
        if self._state is None or not (self._log or self._state.n_probes == n_probes):
            presets = self._presets(self._n_clusters, n_probes)
            with _core_errors():
                self._state = _core.MarkovState(self._parameters, presets)
        return self._state

    def _presets(self, n_clusters: int, n_probes: int) -> NDArray[np.float64]:
        generator = np.random.default_rng(self._seed)
        return generator.uniform(self._preset_low, self._preset_high, size=(n_clusters, n_probes))


@dataclass(frozen=True)
class Replay:
    """What many orders of a stream of tasks lead to; one row an order, one column a position.

    Attributes
    ----------
    labels : ndarray of int64, shape (R, N)
        Group of the task at position i of order r, numbered in order of creation in that order.
    kinds : ndarray of uint8, shape (R, N)
        Kind of the decision, an index into `KINDS`: 0 opened, 1 joined, 2 split.
    p_values : ndarray of float64, shape (R, N)
        p-value of the test; NaN where none was made.
    n_groups : ndarray of int64, shape (R,)
        Number of groups at the end.
    """

    labels: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    p_values: NDArray[np.float64]
    n_groups: NDArray[np.int64]


def replay(
    tasks: Sequence[ArrayLike], orders: ArrayLike, n_threads: int | None = None, **params: Any
) -> Replay:
    """Predict and commit stored tasks in many orders, each from an empty state, in threads.

    Every order gives what a fresh `MarkovGrouper(**params)` gives when fed one task at a time.

    Parameters
    ----------
    tasks : sequence of array_like of float64, each of shape (T_i, B)
        Trials matrices.
    orders : array_like of int, shape (R, N)
        Each row holds distinct indices into `tasks`, all of them or some.
    n_threads : int, optional
        By default the number of processors. The result doesn't depend on it.
    **params
        Arguments of `MarkovGrouper`.

    Raises
    ------
    GroupingError
        If an argument is not valid, or a task can't be grouped in one of the orders.
    """
    grouper = MarkovGrouper(**params)
    matrices = _all_trials(tasks)
    checked = _checked_orders(orders, len(matrices))
    wanted = (os.cpu_count() or 1) if n_threads is None else n_threads
    n_threads = _integer("n_threads", wanted, 1, 2**16)
    n_presets = n_clusters = grouper.n_clusters
    while n_presets <= checked.shape[1]:
        n_presets *= 2
    n_probes = matrices[0].shape[1]
    offsets = np.zeros((len(matrices) + 1, 1), dtype=np.int64)
    np.cumsum([len(matrix) for matrix in matrices], out=offsets[1:, 0])
    with _core_errors():
        return Replay(
            *_core.replay(
                grouper._parameters,
                n_clusters,
                grouper._presets(n_presets, n_probes),
                np.concatenate(matrices),
                offsets,
                checked,
                n_threads,
            )
        )


def _all_trials(tasks: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    matrices: list[NDArray[np.float64]] = []
    for i, trials in enumerate(tasks):
        try:
            matrix = as_trials(trials)
        except GroupingError as error:
            raise GroupingError(f"task {i}: {error}") from None
        if matrices and matrix.shape[1] != matrices[0].shape[1]:
            raise GroupingError(
                f"task {i}: expected a trials matrix of shape (T, {matrices[0].shape[1]}) as that "
                f"of task 0, got {matrix.shape}: measure every task with the same suite of probes"
            )
        matrices.append(matrix)
    if not matrices:
        raise GroupingError("expected at least one task, got none: give their trials matrices")
    return matrices


def _checked_orders(orders: ArrayLike, n_tasks: int) -> NDArray[np.int64]:
    given = np.asarray(orders)
    if given.ndim != 2 or given.dtype.kind not in "iu":
        raise GroupingError(
            "expected orders of integers of shape (R, N), one row an order, got shape "
            f"{given.shape} and dtype {given.dtype}: for one order give [order]"
        )
    checked = np.array(given, dtype=np.int64, order="C")
    ranked = np.sort(checked, axis=1)
    wrong = (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)
    wrong |= ((ranked < 0) | (ranked >= n_tasks)).any(axis=1)
    if wrong.any():
        raise GroupingError(
            f"expected rows of distinct task numbers from 0 to {n_tasks - 1}, got row "
            f"{int(wrong.argmax())} with a repeated number or one out of range: mend that order"
        )
    return checked
