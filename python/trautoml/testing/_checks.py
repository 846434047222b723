"""What the contract suites check with."""

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trautoml.jobs import TrainingJob
from trautoml.search import SearchResult, TrialRecord
from trautoml.spaces import ChainSpace
from trautoml.spec import Hyperparameters, ModelSpec
from trautoml.testing.engine import FakeEngine


def warm_starts(n: int) -> list[ModelSpec]:
    """Give n different chains; the second is in no space, for its number of channels."""
    layer = {"kernel": 3, "channels": 12, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
    structure = {"layers": [layer], "dense": [], "batch_norm": True}
    outsider = ModelSpec("chain", structure, Hyperparameters(0.1, 0.9, 1e-4, 16, 1.0))
    drawn = [ChainSpace().sample(np.random.default_rng([i, 99])) for i in range(n)]
    return [outsider if i == 1 else spec for i, spec in enumerate(drawn)]


def is_alone(job: Any) -> bool:
    """Whether a job trains from scratch, as a final training does."""
    return isinstance(job, TrainingJob) and not job.ancestors


def keys(engine: FakeEngine) -> set[str]:
    """Keys of the jobs that an engine has run."""
    return {job.key for job, _ in engine.executed}


def essence(result: SearchResult) -> tuple[Any, ...]:
    """All of a result but the seconds."""
    history = [dataclasses.replace(record, seconds=0.0) for record in result.history]
    return result.spec, result.score, history


def check_history(history: Sequence[TrialRecord], engine: FakeEngine) -> None:
    """Check that a history has all trainings that an engine ran, and no other score alone."""
    told: dict[bool, set[Any]] = {True: set(), False: set()}
    for r in history:
        told[r.alone].add((r.spec, r.epochs, r.score, r.diverged))
    trained: dict[bool, set[Any]] = {True: set(), False: set()}
    for job, result in engine.executed:
        if isinstance(job, TrainingJob):
            outcome = (job.spec, result.epochs, result.score, result.diverged)
            trained[is_alone(job)].add(outcome)
    assert told[True] == trained[True], (
        f"of {len(trained[True])} trainings alone, {len(trained[True] - told[True])} are not in "
        f"the history as they were, and {len(told[True] - trained[True])} records are of none"
    )
    assert trained[False] <= told[False], (
        "a training with inherited weights is not in the history, or counts as one alone"
    )
    seconds = math.fsum(result.seconds for _, result in engine.executed)
    told_seconds = math.fsum(record.seconds for record in history)
    assert math.isclose(told_seconds, seconds), (
        f"jobs took {seconds} s in all, but those of the history add up to {told_seconds}"
    )


class RandomStates:
    """The global random states of Python, NumPy and torch, as they are when this is made."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy: Any = np.random.get_state()  # noqa: NPY002 - it is the global one that matters
        self._torch = torch.get_rng_state()

    @classmethod
    def seeded(cls, seed: int) -> "RandomStates":
        """Seed all of them."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        return cls()

    def restore(self) -> None:
        """Make the states what they were."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)

    def still_hold(self) -> bool:
        """Whether the states are what they were."""
        now = RandomStates()
        return (
            now._python == self._python
            and all(np.array_equal(a, b) for a, b in zip(now._numpy, self._numpy, strict=True))
            and torch.equal(now._torch, self._torch)
        )
