"""Hyperband (Li et al. 2018) over a search space, with Optuna's trials and storage."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import TrialState

from trautoml.engine import Engine
from trautoml.errors import InputError
from trautoml.jobs import TrainingResult
from trautoml.search._base import (
    SearchBudget,
    Searcher,
    SearchProgress,
    SearchResult,
    TrialRecord,
)
from trautoml.search._candidates import draw_candidate
from trautoml.search._pruner import RoundPruner
from trautoml.search._rounds import Rounds, training_record, trial_number
from trautoml.search._study import open_study
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.spec import ModelSpec
from trautoml.task import Task


class HyperbandSearcher(Searcher):
    """Random candidates, most of which are stopped early.

    Candidates are trained in rounds of `slots`, each to its next rung. Then all of the round are
    decided on at once: of the n of a bracket that have reached a rung so far, in this round and
    before, those of the round go on that are among the best n // eta (at least the best one); of
    equal scores, the first started. A candidate that diverged counts, but never goes on. In bracket
    b, nobody is stopped before eta^b epochs; the brackets fill evenly, in the paper's proportions.
    So a decision never depends on which worker was faster, and the same search gives the same
    result on any number of workers, unless a time budget ends it.

    Parameters
    ----------
    space : SearchSpace, optional
        Default: the chain space.
    seed : int
        Candidate i is a function of the seed and i alone: searches on different tasks see the same
        sequence and compare configuration by configuration.
    reduction_factor : int
        eta: one in eta candidates goes on to a rung with eta times the epochs. Default 3.
    slots : int
        Candidates in a round, at most. Default 27: a search of the usual size then decides on all
        its candidates at once, and nobody goes on only for having been early.
    storage : str, optional
        URL of the database for Optuna's records. Default: memory.

    Raises
    ------
    InputError
        If `reduction_factor` is below 2 or `slots` below 1.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        seed: int = 0,
        reduction_factor: int = 3,
        slots: int = 27,
        storage: str | None = None,
    ) -> None:
        if reduction_factor < 2 or slots < 1:
            raise InputError(
                f"expected reduction_factor >= 2 and slots >= 1, got {reduction_factor} and {slots}"
            )
        self.space = space or ChainSpace()
        self.seed = seed
        self.reduction_factor = reduction_factor
        self.slots = slots
        self.storage = storage

    def rungs(self, epochs: int) -> list[int]:
        """Budgets in epochs at which candidates are compared; the last is `epochs`."""
        steps = []
        step = 1
        while step * self.reduction_factor <= epochs:
            steps.append(step)
            step *= self.reduction_factor
        return [*steps, epochs]

    def search(
        self,
        task: Task,
        *,
        budget: SearchBudget,
        engine: Engine,
        warm_start: Sequence[ModelSpec] = (),
        callback: Callable[[SearchProgress], None] | None = None,
    ) -> SearchResult:
        """See `Searcher.search`."""
        allowed = max(budget.trials, len(warm_start))
        rounds = Rounds(task, budget, engine, callback, allowed=allowed, width=self.slots)
        name = f"hyperband {task.fingerprint[:16]}"
        pruner = RoundPruner(budget.epochs, self.reduction_factor)
        with open_study(name, storage=self.storage, pruner=pruner) as study:
            run = _Run(self, study, rounds, list(warm_start))
            while run.round():
                pass
        return rounds.result()


@dataclass
class _Candidate:
    """A candidate that is still in the race."""

    number: int
    trial: optuna.Trial
    spec: ModelSpec
    rung: int = 0
    seconds_per_epoch: float = 0.0


@dataclass
class _Run:
    """The state of one search."""

    searcher: HyperbandSearcher
    study: optuna.Study
    rounds: Rounds
    warm_start: list[ModelSpec]
    active: list[_Candidate] = field(default_factory=list)

    def round(self) -> bool:
        """Train every active candidate to its next rung and decide; False at the end."""
        while len(self.active) < self.searcher.slots and self.rounds.started < self.rounds.allowed:
            self.active.append(self._start())
        records = self._train()
        self._drop([c for i, c in enumerate(self.active) if i not in records])
        scored = [(self.active[i], record) for i, record in records.items()]
        # All report before the first is decided on: each is compared with the whole round.
        for candidate, record in scored:
            score = math.nan if record.diverged else record.score
            candidate.trial.report(score, self._epochs(candidate))
        self.active = [c for c, record in scored if self._goes_on(c, record)]
        return bool(records)

    def _start(self) -> _Candidate:
        number = trial_number(self.rounds.started, len(self.warm_start))
        self.rounds.started += 1
        if number < 0:
            # Optuna needs no parameters to judge a trial: a spec from another space is welcome.
            spec, trial = self.warm_start[-1 - number], self.study.ask()
        else:
            params, spec = draw_candidate(self.searcher.space, self.searcher.seed, number)
            self.study.enqueue_trial(params)
            trial = self.study.ask()
            self.searcher.space.define(trial)  # so that Optuna's records have the choices
        trial.set_user_attr("spec", spec.to_json())
        return _Candidate(number, trial, spec)

    def _epochs(self, candidate: _Candidate) -> int:
        return self.searcher.rungs(self.rounds.budget.epochs)[candidate.rung]

    def _drop(self, candidates: Sequence[_Candidate]) -> None:
        for candidate in candidates:
            self.study.tell(candidate.trial, state=TrialState.PRUNED)

    def _train(self) -> Mapping[int, TrialRecord]:
        epochs = [self._epochs(candidate) for candidate in self.active]
        jobs = [
            self.rounds.training(candidate.spec, epochs=until, seed=self.searcher.seed)
            for candidate, until in zip(self.active, epochs, strict=True)
        ]

        def record(index: int, result: TrainingResult, seconds: float) -> TrialRecord:
            candidate = self.active[index]
            candidate.seconds_per_epoch = result.seconds / result.epochs
            return training_record(candidate.number, candidate.spec, result, seconds)

        # The longest first: a round is over when its last training is.
        order = sorted(
            range(len(jobs)), key=lambda i: -self.active[i].seconds_per_epoch * epochs[i]
        )
        return self.rounds.run(jobs, record, epoch=max(epochs, default=0), order=order)

    def _goes_on(self, candidate: _Candidate, record: TrialRecord) -> bool:
        if record.diverged:
            self._drop([candidate])
            return False
        if self._epochs(candidate) == self.rounds.budget.epochs:
            self.study.tell(candidate.trial, record.score)
            return False
        if candidate.trial.should_prune():
            self._drop([candidate])
            return False
        candidate.rung += 1
        return True
