"""The sequence of random candidates that searchers share."""

from typing import Any

import numpy as np

from trautoml.spaces import RandomChoice, SearchSpace
from trautoml.spec import ModelSpec

_STREAM = 0
"""Keeps the candidates of a search apart from the probes with the same seed."""


def draw_candidate(space: SearchSpace, seed: int, index: int) -> tuple[dict[str, Any], ModelSpec]:
    """Draw candidate `index` of a seed's sequence: its choices by name, and its spec.

    It depends on nothing else: searches on different tasks, and by different searchers, see the
    same sequence and compare configuration by configuration.
    """
    choice = RandomChoice(np.random.default_rng([seed, _STREAM, index]))
    spec = space.define(choice)
    return choice.params, spec
