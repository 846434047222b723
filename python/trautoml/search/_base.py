"""The searcher protocol: `search` turns a task into a spec, under a budget, on an engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trautoml.engine import Engine
from trautoml.errors import InputError
from trautoml.spec import ModelSpec
from trautoml.task import Task


@dataclass(frozen=True)
class SearchBudget:
    """How much a search may spend.

    Parameters
    ----------
    trials : int
        Candidates that are started, at most. Default 20. Searchers that train a supergraph spend
        it on epochs of that, and train what they found on top.
    epochs : int
        Epochs that a candidate may be trained, and that the final model is. Default 9.
    seconds : float, optional
        No more training is waited for after this many seconds of the engine's time (worker seconds
        divided by the workers that the searcher can keep busy); at least one is. The time that a
        searcher itself takes to propose is not counted. Results that the engine remembers are
        always taken.
        Default: no limit.

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    trials: int = 20
    epochs: int = 9
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or self.epochs < 1 or (self.seconds is not None and self.seconds <= 0):
            raise InputError(
                "expected a search budget with at least one trial and one epoch, and more than "
                f"0 seconds, got {self}"
            )


@dataclass(frozen=True)
class TrialRecord:
    """One score of one candidate at one budget.

    Attributes
    ----------
    trial : int
        Number of the candidate in this search; -1, -2, ... for warm starts.
    spec : ModelSpec
        What was trained.
    epochs : float
        The budget.
    score : float
        Validation accuracy.
    seconds : float
        Worker seconds of this piece of training.
    diverged : bool
        Whether the training came to nothing; the score is then the chance level.
    alone : bool
        Whether the candidate was trained from scratch, as a final model is. Scores that were
        reached with inherited or shared weights guide a search, but never are its result.
    """

    trial: int
    spec: ModelSpec
    epochs: float
    score: float
    seconds: float
    diverged: bool = False
    alone: bool = True


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands.

    Attributes
    ----------
    started, allowed : int
        Candidates.
    round : int
        1 for the first.
    done, trainings : int
        Trainings of this round: those that are done, and all.
    epoch, epochs : int
        How far this round trains at most, and how far the last one does.
    best : TrialRecord
        The best so far.
    seconds : float
        Worker seconds spent.
    allowed_seconds : float or None
        Worker seconds that may be spent, if there is a limit.
    """

    started: int
    allowed: int
    round: int
    done: int
    trainings: int
    epoch: int
    epochs: int
    best: TrialRecord
    seconds: float
    allowed_seconds: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    spec : ModelSpec
        The best one.
    score : float
        Its validation accuracy.
    seconds : float
        Worker seconds of all trainings.
    history : tuple of TrialRecord
        Every score at every budget, in the order of decision.
    """

    spec: ModelSpec
    score: float
    seconds: float
    history: tuple[TrialRecord, ...]


class Searcher(ABC):
    """Turns a task into a model spec.

    A searcher keeps no state between calls that changes a result: the same task, budget and
    warm start give the same spec, on any number of workers. It is used by one thread at a time.
    """

    @abstractmethod
    def search(
        self,
        task: Task,
        *,
        budget: SearchBudget,
        engine: Engine,
        warm_start: Sequence[ModelSpec] = (),
        callback: Callable[[SearchProgress], None] | None = None,
    ) -> SearchResult:
        """Search.

        Parameters
        ----------
        task : Task
            What the model is for.
        budget : SearchBudget
            What the search may spend.
        engine : Engine
            Where it trains. An engine that remembers results makes the search resumable.
        warm_start : sequence of ModelSpec
            Specs to try first.
        callback : callable, optional
            Called with the progress after each training.

        Raises
        ------
        SearchError
            If nothing usable was found; it carries the history.
        """
