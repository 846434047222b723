"""Searches that propose specs, see them trained in full, and learn from their scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from trautoml.engine import Engine
from trautoml.errors import InputError
from trautoml.search._base import SearchBudget, Searcher, SearchProgress, SearchResult
from trautoml.search._rounds import Rounds, trial_number
from trautoml.spec import ModelSpec
from trautoml.task import Task

_IDLE_ROUNDS = 10
"""Rounds in a row without a new spec, after which a proposer has no more to say."""


@dataclass(frozen=True)
class Proposal:
    """A spec, and what its proposer needs to learn from its score.

    Attributes
    ----------
    spec : ModelSpec
        What to train.
    memo : object
        The proposer's own. One that is None is not observed.
    """

    spec: ModelSpec
    memo: Any = None


class Proposer(ABC):
    """Proposes specs and learns from their scores. Fresh for each search; deterministic."""

    @abstractmethod
    def propose(self, n: int, spent: float) -> list[Proposal]:
        """Propose n specs, which are trained in one round.

        Parameters
        ----------
        n : int
            How many.
        spent : float
            Share of the budget that is spent already, in [0, 1].
        """

    @abstractmethod
    def observe(self, scored: Sequence[tuple[Proposal, float]]) -> None:
        """Learn from one round.

        Parameters
        ----------
        scored : sequence of (Proposal, float)
            In order of proposal, with the validation accuracy; the chance level where a training
            diverged.
        """

    def adopt(self, spec: ModelSpec) -> Proposal:
        """Make a proposal of a spec from elsewhere; with a memo, if it can be learned from."""
        return Proposal(spec)

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what the proposer holds."""


class ProposingSearcher(Searcher):
    """Trains each candidate for all epochs, `slots` in a round.

    A round is proposed at once and observed at once, so that the search takes the same way on any
    number of workers. With more slots more workers are kept busy; with fewer, each proposal
    knows of more scores. The search is over when its budget is, or after ten rounds in a row that
    propose nothing new.

    Parameters
    ----------
    seed : int
        Draws proposals and initial weights.
    slots : int
        Candidates in a round. Default 4.

    Raises
    ------
    InputError
        If `slots` is below 1.
    """

    def __init__(self, *, seed: int = 0, slots: int = 4) -> None:
        if slots < 1:
            raise InputError(f"expected slots >= 1, got {slots}")
        self.seed = seed
        self.slots = slots

    @abstractmethod
    def proposer(self, task: Task) -> Proposer:
        """Make a proposer that has seen nothing."""

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
        idle = 0
        with closing(self.proposer(task)) as proposer:
            waiting = [proposer.adopt(spec) for spec in warm_start]
            while rounds.started < allowed and idle < _IDLE_ROUNDS:
                known = rounds.trained
                n = min(self.slots, allowed - rounds.started)
                proposals, waiting = waiting[:n], waiting[n:]
                proposals += proposer.propose(n - len(proposals), rounds.spent)
                first = rounds.started
                rounds.started += n
                numbers = [trial_number(i, len(warm_start)) for i in range(first, first + n)]
                specs = [proposal.spec for proposal in proposals]
                records = rounds.train(list(zip(numbers, specs, strict=True)), seed=self.seed)
                if len(records) < n:  # the time is up
                    break
                idle = idle + 1 if rounds.trained == known else 0
                scored = zip(proposals, records.values(), strict=True)
                proposer.observe([(p, r.score) for p, r in scored if p.memo is not None])
        return rounds.result()
