"""Random search: the baseline of all others."""

from collections.abc import Sequence

from trautoml.search._candidates import draw_candidate
from trautoml.search._proposing import Proposal, Proposer, ProposingSearcher
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.task import Task


class RandomSearcher(ProposingSearcher):
    """Random candidates, each trained for all epochs.

    Parameters
    ----------
    space : SearchSpace, optional
        Default: the chain space.
    seed : int
        Candidate i is a function of the seed and i alone, and the same as Hyperband's.
    slots : int
        Candidates in a round. Default 27, as Hyperband: no candidate waits for another.

    Raises
    ------
    InputError
        If `slots` is below 1.
    """

    def __init__(self, space: SearchSpace | None = None, *, seed: int = 0, slots: int = 27) -> None:
        super().__init__(seed=seed, slots=slots)
        self.space = space or ChainSpace()

    def proposer(self, task: Task) -> Proposer:  # noqa: ARG002 - all tasks see the same
        """See `ProposingSearcher.proposer`."""
        return _RandomProposer(self.space, self.seed)


class _RandomProposer(Proposer):
    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space, self._seed, self._drawn = space, seed, 0

    def propose(self, n: int, spent: float) -> list[Proposal]:  # noqa: ARG002
        first = self._drawn
        self._drawn += n
        drawn = [draw_candidate(self._space, self._seed, i) for i in range(first, first + n)]
        return [Proposal(spec) for _, spec in drawn]

    def observe(self, scored: Sequence[tuple[Proposal, float]]) -> None:
        """Learn nothing."""
