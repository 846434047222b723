"""Successive halving of whole rounds, as a pruner of Optuna."""

import math
import zlib
from bisect import bisect_right
from itertools import accumulate

import optuna
from optuna.trial import FrozenTrial


class RoundPruner(optuna.pruners.BasePruner):
    """Hyperband's brackets, in which the best `n // eta` of `n` go on.

    Optuna's `HyperbandPruner` compares a trial with those that were decided on before it: of
    trials that arrive the best first, only the first goes on. Here it is compared with all of its
    bracket that have reported at its step. Report a whole round before deciding on the first of
    it, and the order of decisions plays no part; with rounds of one trial, both pruners agree on
    scores that differ. A trial that reports NaN counts, and never goes on.

    Parameters
    ----------
    epochs : int
        Trials report at 1, eta, eta^2, ... epochs below this number.
    reduction_factor : int
        eta.
    """

    def __init__(self, epochs: int, reduction_factor: int) -> None:
        self._eta = reduction_factor
        self._first_steps = [1]
        while self._first_steps[-1] * reduction_factor <= epochs:
            self._first_steps.append(self._first_steps[-1] * reduction_factor)
        n = len(self._first_steps)
        # Bracket b's share of the trials, as Optuna has it: ceil(n eta^s / (s + 1)), s = n - 1 - b.
        self._shares = list(
            accumulate(-(-n * step // (n - b)) for b, step in enumerate(self._first_steps[::-1]))
        )

    def bracket(self, study_name: str, number: int) -> int:
        """Bracket of a trial, the same as Optuna's; in bracket b all reach eta^b epochs."""
        place = zlib.crc32(f"{study_name}_{number}".encode()) % self._shares[-1]
        return bisect_right(self._shares, place)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is not of the best `n // eta` (or 1); of equals, the first are."""
        step = trial.last_step
        bracket = self.bracket(study.study_name, trial.number)
        if step is None or step < self._first_steps[bracket]:
            return False
        score = trial.intermediate_values[step]
        if math.isnan(score):
            return True
        rivals = [
            (-other.intermediate_values[step], other.number)
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values
            and self.bracket(study.study_name, other.number) == bracket
        ]
        better = sum(rival < (-score, trial.number) for rival in rivals)
        return better >= max(1, len(rivals) // self._eta)
