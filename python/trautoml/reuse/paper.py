"""The paper's policy: follow the decision (Algorithm 1)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trautoml.grouping import Decision
from trautoml.reuse._base import ReusePolicy
from trautoml.spec import ModelSpec


class PaperPolicy(ReusePolicy):
    """A task that joined a group reuses the group's spec; any other is searched."""

    def choose(
        self,
        group_specs: Mapping[int, ModelSpec],
        trials: npt.NDArray[np.float64],  # noqa: ARG002 - the decision says it all
        decision: Decision,
    ) -> ModelSpec | None:
        """Return the group's spec if the task joined, else None."""
        return group_specs[decision.group] if decision.kind == "joined" else None
