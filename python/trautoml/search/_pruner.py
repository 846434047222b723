"""Hyperband's successive halving, decided on a whole round at a time."""

import math

import optuna
from optuna.trial import FrozenTrial


class RoundPruner(optuna.pruners.HyperbandPruner):
    """Optuna's Hyperband, in which the best ``n // eta`` of the n that have come so far go on.

    Optuna's rule is made for trials that arrive one by one: each is compared with those that were
    decided on before it, so of a round that is decided on the best first, only the first goes on.
    Here a trial is compared with all of its bracket that have reported at its step. Report a whole
    round before deciding on the first of it, and the order of decisions plays no part; with rounds
    of one trial, both rules agree on scores that differ. Brackets are Optuna's. A trial that
    reports NaN counts, and never goes on.

    Parameters
    ----------
    epochs : int
        Trials report at 1, eta, eta^2, ... epochs below this number.
    reduction_factor : int
        eta.
    """

    def __init__(self, epochs: int, reduction_factor: int) -> None:
        super().__init__(min_resource=1, max_resource=epochs, reduction_factor=reduction_factor)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is not of the best ``n // eta`` (or 1); of equals, the first are."""
        if not self._pruners:
            self._try_initialization(study)  # sets up Optuna's brackets
        step = trial.last_step
        bracket = self._get_bracket_id(study, trial)
        # In bracket b nobody is stopped before eta^b epochs.
        if step is None or step < self._reduction_factor**bracket:
            return False
        score = trial.intermediate_values[step]
        if math.isnan(score):
            return True
        rivals = [
            (-other.intermediate_values[step], other.number)
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values and self._get_bracket_id(study, other) == bracket
        ]
        better = sum(rival < (-score, trial.number) for rival in rivals)
        return better >= max(1, len(rivals) // self._reduction_factor)
