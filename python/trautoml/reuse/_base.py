"""The reuse policy protocol: which known spec to reuse, or to search."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trautoml.grouping import Decision
from trautoml.spec import ModelSpec


class ReusePolicy(ABC):
    """Says what to do with a task that the grouper has decided on. Stateless."""

    @abstractmethod
    def choose(
        self,
        group_specs: Mapping[int, ModelSpec],
        trials: npt.NDArray[np.float64],
        decision: Decision,
    ) -> ModelSpec | None:
        """Choose a spec to reuse, or None to search.

        Parameters
        ----------
        group_specs : Mapping
            The model spec of each group, by the group's number.
        trials : ndarray of float64, shape (T, B)
            The new task's trials matrix.
        decision : Decision
            The grouper's decision on it.
        """
