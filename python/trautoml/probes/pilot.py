"""Draw those probes again that learn nothing: at chance on every task they tell none apart."""

import logging
from dataclasses import replace

import numpy as np

from trautoml.engine import Engine
from trautoml.errors import InputError
from trautoml.probes.suite import ProbeSuite, draw_probe
from trautoml.spaces import SearchSpace
from trautoml.task import Task

_log = logging.getLogger("trautoml")

_TRIALS = 2
_LEARNT = 0.25
_MAX_ROUNDS = 20


def pilot(
    suite: ProbeSuite,
    task: Task,
    *,
    space: SearchSpace,
    seed: int,
    engine: Engine,
) -> ProbeSuite:
    """Replace the probes that hardly rise above chance on an easy task.

    A probe stays if the mean of its two trials goes a quarter of the way from the task's chance
    level to 1: one that gets less out of an easy task is at chance level on all others. The ones
    drawn again continue the seed's sequence of probes, so one seed gives one suite everywhere.

    Parameters
    ----------
    suite : ProbeSuite
        As sampled from `space` with `seed`.
    task : Task
        An easy task, such as the digits that ship with scikit-learn.
    space, seed
        What the suite was sampled with.
    engine : Engine
        Where to train.

    Returns
    -------
    ProbeSuite
        As many probes, each of which can learn.

    Raises
    ------
    InputError
        If twenty draws in a row give a position no probe that learns.
    """
    probes = list(suite.probes)
    threshold = task.chance + _LEARNT * (1 - task.chance)
    untested = list(range(len(probes)))
    drawn = len(probes)
    for _ in range(_MAX_ROUNDS):
        candidates = replace(suite, probes=tuple(probes[b] for b in untested))
        means = candidates.measure(task, _TRIALS, engine=engine).trials.mean(0)
        dull = [b for b, mean in zip(untested, means, strict=True) if mean <= threshold]
        for b, mean in zip(untested, np.round(means, 3), strict=True):
            if b in dull:
                _log.info(
                    "probe %d hardly learns on %s (accuracy %.3f, chance %.3f): drawn again",
                    b,
                    task.name,
                    mean,
                    task.chance,
                )
                probes[b] = draw_probe(space, seed, drawn)
                drawn += 1
        if not dull:
            return replace(suite, probes=tuple(probes))
        untested = dull
    raise InputError(
        f"after {_MAX_ROUNDS} draws, {len(untested)} probes still learn nothing on {task.name}: "
        "let a trial see more images, or sample from a space whose models can learn from so few"
    )
