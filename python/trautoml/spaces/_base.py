"""A search space is one function from choices to a model spec."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, Union

import numpy as np

from trautoml.errors import SpecError
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


class GivenChoice:
    """An `optuna.Trial` in shape, whose choices are given by name.

    Raises
    ------
    SpecError
        By each method, if its choice is not given or not one of those allowed.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = dict(params)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Give an integer of [low, high]."""
        value = self._given(name)
        if not isinstance(value, int) or not low <= value <= high:
            raise SpecError(f"{name}: expected a whole number in [{low}, {high}], got {value!r}")
        return value

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:  # noqa: ARG002
        """Give a number of [low, high]."""
        value = self._given(name)
        if not isinstance(value, int | float) or not low <= value <= high:
            raise SpecError(f"{name}: expected a number in [{low}, {high}], got {value!r}")
        return float(value)

    def suggest_categorical(self, name: str, choices: Sequence[Option]) -> Option:
        """Give one of `choices`."""
        value = self._given(name)
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
        raise SpecError(f"{name}: expected one of {list(choices)}, got {value!r}")

    def _given(self, name: str) -> Any:
        if name not in self.params:
            raise SpecError(f"{name}: expected a choice of this name, got {sorted(self.params)}")
        return self.params[name]


class ChoiceLike(Protocol):
    """What a space asks: `optuna.Trial` and everything of its shape."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose an integer of [low, high]."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number of [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Option]) -> Option:
        """Choose one of `choices`."""


Choice: TypeAlias = Union["optuna.Trial", ChoiceLike]
"""Where a space gets its choices from."""


class SearchSpace(ABC):
    """The feasible region of models. Stateless: safe to share between threads and processes."""

    @abstractmethod
    def define(self, choice: Choice) -> ModelSpec:
        """Make the choices one by one and return the spec they amount to."""

    def sample(self, rng: np.random.Generator) -> ModelSpec:
        """Draw one spec; the same generator state gives the same spec."""
        return self.define(RandomChoice(rng))

    def params_of(self, spec: ModelSpec) -> dict[str, Any] | None:  # noqa: ARG002
        """Tell the choices that amount to a spec; None if it is not of this space, or unknown.

        With them, a model-based search learns from a warm start.
        """
        return None
