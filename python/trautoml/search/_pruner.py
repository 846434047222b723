"""Hyperband's brackets and successive halving, decided on a whole round at a time."""

import math
from functools import lru_cache

import optuna
from optuna.trial import FrozenTrial


class RoundPruner(optuna.pruners.BasePruner):
    """Hyperband (Li et al. 2018) for trials that come in rounds.

    In bracket b nobody is stopped before eta^b epochs; after that, of the n of a bracket that have
    reported at a step so far, the best ``n // eta`` (or 1) go on. Brackets fill in the proportions
    of the paper, evenly from the first trial on: for 81 epochs and eta = 3, of 143 trials there
    are 81, 34, 15, 8 and 5 in them.

    Optuna's own `HyperbandPruner` is made for trials that arrive one by one: it draws brackets by
    a hash, and compares a trial with those that were decided on before it, so that of a round that
    is decided on the best first, only the first goes on. Report a whole round before deciding on
    the first of it, and the order of decisions plays no part. A trial that reports NaN counts, and
    never goes on.

    Parameters
    ----------
    epochs : int
        Trials report at 1, eta, eta^2, ... epochs below this number.
    reduction_factor : int
        eta.
    """

    def __init__(self, epochs: int, reduction_factor: int) -> None:
        self._eta = reduction_factor
        self._sequence = bracket_sequence(epochs, reduction_factor)

    def bracket(self, trial: FrozenTrial) -> int:
        """Bracket of a trial, by its number in the study."""
        return self._sequence[trial.number % len(self._sequence)]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is not of the best ``n // eta`` (or 1); of equals, the first are."""
        step, bracket = trial.last_step, self.bracket(trial)
        if step is None or step < self._eta**bracket:
            return False
        score = trial.intermediate_values[step]
        if math.isnan(score):
            return True
        rivals = [
            (-other.intermediate_values[step], other.number)
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values and self.bracket(other) == bracket
        ]
        better = sum(rival < (-score, trial.number) for rival in rivals)
        return better >= max(1, len(rivals) // self._eta)


@lru_cache
def bracket_sequence(epochs: int, eta: int) -> tuple[int, ...]:
    """Brackets of the trials of one whole Hyperband, in order; then it begins anew.

    The bracket with s halvings gets ``ceil((s_max + 1) / (s + 1) * eta^s)`` trials (Li et al.
    2018, Algorithm 1).
    """
    s_max = 0
    while eta ** (s_max + 1) <= epochs:
        s_max += 1
    sizes = [-(-(s_max + 1) * eta**s // (s + 1)) for s in range(s_max, -1, -1)]
    filled = [0] * len(sizes)
    sequence = []
    for _ in range(sum(sizes)):
        # The one that is furthest behind its share; of equals, the one that halves the most.
        behind = [(count + 0.5) / size for count, size in zip(filled, sizes, strict=True)]
        bracket = behind.index(min(behind))
        filled[bracket] += 1
        sequence.append(bracket)
    return tuple(sequence)
