"""MetaQNN: Q-learning of which layer follows which (Baker, Gupta, Naik & Raskar, ICLR 2017)."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from trautoml.search._proposing import Proposal, Proposer, ProposingSearcher
from trautoml.spaces.layers import LayerSpace, Step
from trautoml.spec import ModelSpec
from trautoml.task import Task

_STREAM = 3
"""Keeps its draws apart from those of others with the same seed."""

_SCHEDULE = [(1.0, 1500), *((e, 100) for e in (0.9, 0.8, 0.7))] + [
    (e, 150) for e in (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
]
"""Table 2 of the paper: epsilon, and the models that are drawn with it."""

_MODELS = sum(models for _, models in _SCHEDULE)

_REPLAYS = 100
"""Walks that are replayed for each new model."""

_DRAWS = 20
"""Walks that are drawn, at most, to find a model that was not proposed before."""

State = TypeVar("State", bound=Hashable)
Action = TypeVar("Action", bound=Hashable)


def exploration(spent: float) -> float:
    """Give epsilon, the probability of a random action, at a share of the budget in [0, 1].

    The schedule of the paper, whose budget is 2,700 models, stretched.
    """
    drawn = 0
    for value, models in _SCHEDULE:
        drawn += models
        if spent < drawn / _MODELS:
            return value
    return _SCHEDULE[-1][0]


class QTable:
    """Q-values of the actions in each state, learned from walks.

    Parameters
    ----------
    learning_rate : float
        alpha. Default 0.01, as in the paper.
    discount : float
        gamma. Default 1, as in the paper.
    initial : float
        Value of an action that was never updated. Default 0.5, as in the authors' code, which
        advises the accuracy of an average model or less: above it, all that is untried looks best.
    """

    def __init__(
        self, *, learning_rate: float = 0.01, discount: float = 1.0, initial: float = 0.5
    ) -> None:
        self.learning_rate = learning_rate
        self.discount = discount
        self.initial = initial
        self._values: dict[Hashable, dict[Hashable, float]] = {}

    def values(self, state: Hashable, actions: Sequence[Hashable]) -> list[float]:
        """Q(s, u) of some actions."""
        known = self._values.get(state, {})
        return [known.get(action, self.initial) for action in actions]

    def choose(
        self,
        state: Hashable,
        actions: Sequence[Action],
        *,
        epsilon: float,
        rng: np.random.Generator,
    ) -> Action:
        """Take any action with probability `epsilon`, else one of the best; all alike."""
        if rng.random() >= epsilon:
            values = self.values(state, actions)
            best = max(values)
            actions = [a for a, value in zip(actions, values, strict=True) if value == best]
        return actions[int(rng.integers(len(actions)))]

    def update(self, walk: Sequence[tuple[State, Sequence[Action], Action]], reward: float) -> None:
        """Learn from one walk, whose last action alone is rewarded: Eq. 3, the last step first.

        Parameters
        ----------
        walk : sequence of (state, actions, action)
            Where it was, what was allowed there, and what was taken.
        reward : float
            At the end.
        """
        target = reward
        for state, actions, action in reversed(walk):
            known = self._values.setdefault(state, {})
            value = known.get(action, self.initial)
            known[action] = value + self.learning_rate * (target - value)
            target = self.discount * max(self.values(state, actions))


class MetaQnnSearcher(ProposingSearcher):
    """Walks through `LayerSpace`, epsilon-greedy by Q-values that are learned from the scores.

    Each model of the search is drawn layer by layer: at random with probability epsilon, which
    falls from 1 to 0.1 as the budget is spent (`exploration`), else by the largest Q-value. After
    each round, 100 walks for each new model are replayed from memory to update the Q-values. Only
    layers are searched; training hyper-parameters are those of `LayerSpace`. Warm starts that are
    walks of the space are learned from like the others.

    It differs from the paper, which trains 2,700 models, in what tens to hundreds of them ask for:
    a larger learning rate, and Q-values that start from the task's chance level instead of 0.5, so
    that on a task where all accuracies are low it learns too.

    A model that was proposed before in this search is drawn anew, up to 20 times: the paper, too,
    trains no model twice and counts unique models. If nothing new is found the old model is
    proposed, which costs no training; it stays in the memory once.

    Parameters
    ----------
    seed : int
        Draws walks and initial weights.
    slots : int
        Candidates in a round. Default 4.
    learning_rate : float
        Of the Q-values. Default 0.1; the paper's is 0.01.

    Raises
    ------
    InputError
        If `slots` is below 1.
    """

    def __init__(self, *, seed: int = 0, slots: int = 4, learning_rate: float = 0.1) -> None:
        super().__init__(seed=seed, slots=slots)
        self.learning_rate = learning_rate

    def proposer(self, task: Task) -> Proposer:
        """See `ProposingSearcher.proposer`."""
        space = LayerSpace(min(task.image_shape[:2]))
        table = QTable(learning_rate=self.learning_rate, initial=task.chance)
        return QProposer(space, table, seed=self.seed)


class QProposer(Proposer):
    """Proposes walks through a space of layers; see `MetaQnnSearcher`."""

    def __init__(self, space: LayerSpace, table: QTable, *, seed: int) -> None:
        self.space = space
        self.table = table
        self._draws = np.random.default_rng([seed, _STREAM, 0])
        self._replays = np.random.default_rng([seed, _STREAM, 1])
        self._proposed: set[ModelSpec] = set()
        self._memory: dict[ModelSpec, tuple[Sequence[Step], float]] = {}

    def propose(self, n: int, spent: float) -> list[Proposal]:
        """See `Proposer.propose`."""
        return [self._propose(exploration(spent)) for _ in range(n)]

    def _propose(self, epsilon: float) -> Proposal:
        for _ in range(_DRAWS):
            walk = self.space.walk(
                lambda state, actions: self.table.choose(
                    state, actions, epsilon=epsilon, rng=self._draws
                )
            )
            spec = self.space.spec(walk)
            if spec not in self._proposed:
                break
        self._proposed.add(spec)
        return Proposal(spec, walk)

    def adopt(self, spec: ModelSpec) -> Proposal:
        """See `Proposer.adopt`."""
        self._proposed.add(spec)
        return Proposal(spec, self.space.walk_of(spec))

    def observe(self, scored: Sequence[tuple[Proposal, float]]) -> None:
        """See `Proposer.observe`."""
        known = len(self._memory)
        self._memory.update({p.spec: (p.memo, score) for p, score in scored})
        memory = list(self._memory.values())
        for _ in range(_REPLAYS * (len(memory) - known)):
            self.table.update(*memory[int(self._replays.integers(len(memory)))])
