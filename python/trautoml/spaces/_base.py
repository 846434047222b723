"""A search space is one function from choices to a model spec."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

import numpy as np

from trautoml.spec import ModelSpec

if TYPE_CHECKING:
    import optuna

Option = TypeVar("Option", bool, int, float, str)


class RandomChoice:
    """An `optuna.Trial` in shape; it draws uniformly, or log-uniformly where it is asked to.

    Attributes
    ----------
    params : dict
        What was drawn so far, by name.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.params: dict[str, bool | int | float | str] = {}

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Draw an integer uniformly from [low, high]."""
        value = int(self._rng.integers(low, high, endpoint=True))
        self.params[name] = value
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Draw a number uniformly (log-uniformly if `log`) from [low, high]."""
        if log:
            value = math.exp(self._rng.uniform(math.log(low), math.log(high)))
            value = min(max(value, low), high)  # exp(log(high)) may round past the bound
        else:
            value = float(self._rng.uniform(low, high))
        self.params[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Option]) -> Option:
        """Draw one of `choices`, all alike."""
        value = choices[int(self._rng.integers(len(choices)))]
        self.params[name] = value
        return value


Choice: TypeAlias = Union["optuna.Trial", RandomChoice]
"""Where a space gets its choices from."""


class SearchSpace(ABC):
    """The feasible region of models. Stateless: safe to share between threads and processes."""

    @abstractmethod
    def define(self, choice: Choice) -> ModelSpec:
        """Make the choices one by one and return the spec they amount to."""

    def sample(self, rng: np.random.Generator) -> ModelSpec:
        """Draw one spec; the same generator state gives the same spec."""
        return self.define(RandomChoice(rng))
