"""A suite of probes: sampled once, the same for every task (paper, section 2.1)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trautoml.engine import Engine, LocalEngine
from trautoml.errors import InputError
from trautoml.jobs import TrainingJob
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task

_MAX_VAL = 2000
"""Validation images of a trial: more would cost time and add little to a resolution of 1/2000."""

_STREAM = 1
"""Keeps the draws of probes apart from the candidates of a search with the same seed."""


@dataclass(frozen=True)
class Measurement:
    """What the probes measured of one task.

    Attributes
    ----------
    trials : ndarray of float64, shape (T, B)
        Validation accuracy of trial t of probe b, in [0, 1].
    seconds : ndarray of float64, shape (T, B)
        Worker seconds of each.
    """

    trials: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProbeSuite:
    """The probes and how each is trained. Immutable.

    Features are only comparable within one suite.

    Parameters
    ----------
    probes : tuple of ModelSpec
        The B benchmark models.
    images : int
        Training images that one trial sees, the same number for every task: a small task is gone
        through several times, of a large one a random part is seen. Default 4,000.
    """

    probes: tuple[ModelSpec, ...]
    images: int = 4000

    def __post_init__(self) -> None:
        if not self.probes or self.images < 1:
            raise InputError(
                "expected at least one probe and at least one image a trial, "
                f"got {len(self.probes)} probes and {self.images} images"
            )

    @classmethod
    def sample(
        cls, n: int = 6, *, seed: int = 0, space: SearchSpace | None = None, images: int = 4000
    ) -> "ProbeSuite":
        """Draw n probes uniformly, or log-uniformly where the space says so.

        Parameters
        ----------
        n : int
            Number of probes B.
        seed : int
            The same seed gives the same suite.
        space : SearchSpace, optional
            Default: the chain space.
        images : int
            See the class.
        """
        space = space or ChainSpace()
        return cls(tuple(draw_probe(space, seed, index) for index in range(n)), images)

    def measure(
        self,
        task: Task,
        trials: int = 8,
        *,
        engine: Engine | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> Measurement:
        """Train every probe `trials` times on the task.

        Parameters
        ----------
        task : Task
            What to measure.
        trials : int
            Trainings T of each probe; each draws its own weights and images.
        engine : Engine, optional
            Where to train. Default: this process.
        callback : callable, optional
            Called with (trials done, trials in all) after each.

        Returns
        -------
        Measurement
            Scores and cost.

        Raises
        ------
        InputError
            If `trials` is below 1.
        """
        if trials < 1:
            raise InputError(f"expected at least one trial of each probe, got {trials}")
        if engine is None:
            with LocalEngine() as own:
                return self.measure(task, trials, engine=own, callback=callback)
        shared = engine.share(task)
        epochs = self.images / task.n_train
        shape = trials, len(self.probes)
        scores, seconds = np.full(shape, np.nan), np.full(shape, np.nan)
        cells = list(np.ndindex(*shape))
        jobs = [
            TrainingJob(
                shared,
                self.probes[b],
                epochs,
                seed=_trial_seed(task, self.probes[b], t),
                max_val=_MAX_VAL,
                device=engine.device,
            )
            for t, b in cells
        ]
        for done, (index, result) in enumerate(engine.run(jobs), 1):
            scores[cells[index]], seconds[cells[index]] = result.score, result.seconds
            if callback is not None:
                callback(done, len(jobs))
        return Measurement(scores, seconds)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        return {
            "probes": [json.loads(probe.to_json()) for probe in self.probes],
            "images": self.images,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ProbeSuite":
        """Read what `to_json` gave."""
        specs = tuple(ModelSpec.from_json(json.dumps(probe)) for probe in data["probes"])
        return cls(specs, data["images"])


def draw_probe(space: SearchSpace, seed: int, index: int) -> ModelSpec:
    """Draw the probe with that index; probes of one seed can be drawn in any order."""
    return space.sample(np.random.default_rng([seed, _STREAM, index]))


def _trial_seed(task: Task, probe: ModelSpec, trial: int) -> int:
    # Tasks must not share their draws: the test takes its two samples as independent.
    text = f"{task.fingerprint} {probe.digest} {trial}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
