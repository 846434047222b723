"""NAS-RL: a recurrent controller that is trained by REINFORCE (Zoph & Le, ICLR 2017)."""

from collections.abc import Sequence

from trautoml.search._controller import LstmController
from trautoml.search._proposing import Proposal, Proposer, ProposingSearcher
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.task import Task


class NasRlSearcher(ProposingSearcher):
    """Candidates drawn by an LSTM, which learns from the scores of each round.

    The LSTM makes the choices of the space one after another, hyper-parameters of training among
    them: of a real number it knows 5 levels. After each round it takes one step of REINFORCE; see
    `LstmController` for the mathematics. Candidates are drawn from the policy that is updated, so
    one may come twice, which costs no training the second time; and warm starts, which it did not
    draw, are trained but not learned from.

    It differs from the paper, which trains 12,800 networks, in what tens to hundreds of them ask
    for: one LSTM layer of 35 units instead of two, a larger learning rate, a first baseline that is
    the first round's mean, and a small entropy bonus. The reward is the accuracy, not its cube.

    Parameters
    ----------
    space : SearchSpace, optional
        Default: the chain space.
    seed : int
        Draws the controller's weights, candidates and initial weights.
    slots : int
        Candidates in a round. Default 4.
    learning_rate : float
        Of the controller. Default 0.015; the paper's is 0.0006.

    Raises
    ------
    InputError
        If `slots` is below 1.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        seed: int = 0,
        slots: int = 4,
        learning_rate: float = 0.015,
    ) -> None:
        super().__init__(seed=seed, slots=slots)
        self.space = space or ChainSpace()
        self.learning_rate = learning_rate

    def proposer(self, task: Task) -> Proposer:  # noqa: ARG002 - all tasks see the same
        """See `ProposingSearcher.proposer`."""
        controller = LstmController(seed=self.seed, learning_rate=self.learning_rate)
        return _ControllerProposer(self.space, controller)


class _ControllerProposer(Proposer):
    def __init__(self, space: SearchSpace, controller: LstmController) -> None:
        self._space, self._controller = space, controller

    def propose(self, n: int, spent: float) -> list[Proposal]:  # noqa: ARG002
        choices = [self._controller.choice() for _ in range(n)]
        return [Proposal(self._space.define(choice), choice) for choice in choices]

    def observe(self, scored: Sequence[tuple[Proposal, float]]) -> None:
        if scored:
            self._controller.update([(proposal.memo, score) for proposal, score in scored])
