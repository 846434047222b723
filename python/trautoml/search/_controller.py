"""A recurrent policy that chooses token by token and learns by REINFORCE (Zoph & Le 2017)."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from trautoml.device import one_thread
from trautoml.errors import InputError

_STREAM = 2
"""Keeps the draws of a controller apart from the candidates and probes with the same seed."""

_INITIAL = 0.08
"""Weights start uniform in ± this, as in Zoph & Le: all options are then about alike."""

_LEVELS = 5
"""Options of a real number."""

Option = TypeVar("Option", bool, int, float, str)

_ADAM = ("step", "exp_avg", "exp_avg_sq")


class Decision(NamedTuple):
    """One token of a sample: which of how many options was taken under which name."""

    name: str
    n_options: int
    taken: int


class LstmController:
    r"""A distribution over the samples of any search space, which learns from their rewards.

    One LSTM layer runs over the decisions of a sample. Each decision has, by its name, a softmax
    over its options and an embedding of each option; the embedding of what was decided last is the
    next input. What is decided may depend on what was decided before, and so may its options'
    probabilities. `update` ascends, by Adam,

    .. math:: \frac{1}{m} \sum_k \Big[ (R_k - b) \log \pi(a_k) + \beta H_k \Big],

    with the rewards R of a round of m samples, the moving average b of the rewards of the rounds
    before (of the round itself, if it is the first), and the entropy H of the decisions.

    All computation is in double precision on a CPU. Initial weights are a function of the seed and
    the name, and sample i has its own generator: nothing depends on the order in which names are
    met, nor on torch's global generator. Owned by one thread.

    Parameters
    ----------
    seed : int
        Draws initial weights and samples.
    hidden : int
        Width of the LSTM and of the embeddings. Default 35, as in Zoph & Le.
    learning_rate : float
        Adam's. Default 0.015, for tens to hundreds of samples; Zoph & Le use 0.0006 for 12,800.
    baseline_decay : float
        Weight of the past in the moving average, for each update. Default 0.8.
    entropy : float
        beta, the weight of the entropy in nats. Default 0.001.

    Attributes
    ----------
    weights : dict of str to torch.Tensor
        Leaf tensors by name, of all decisions met so far.
    baseline : float or None
        b; None before the first update.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        hidden: int = 35,
        learning_rate: float = 0.015,
        baseline_decay: float = 0.8,
        entropy: float = 0.001,
    ) -> None:
        self.seed = seed
        self.hidden = hidden
        self.baseline_decay = baseline_decay
        self.entropy = entropy
        self.weights: dict[str, torch.Tensor] = {}
        self.baseline: float | None = None
        self._drawn = 0
        self._adam = torch.optim.Adam([self._new_weight("start", (hidden,))], lr=learning_rate)

    def choice(self) -> "ControllerChoice":
        """Begin a sample; a search space's `define` makes its decisions."""
        rng = np.random.default_rng([self.seed, _STREAM, self._drawn])
        self._drawn += 1
        return ControllerChoice(self, rng)

    def log_prob(self, decisions: Sequence[Decision]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of a sample under the present weights, and the entropy of its decisions.

        Returns
        -------
        log_prob, entropy : torch.Tensor
            Scalars in nats, differentiable in `weights`. The entropy is summed over the decisions,
            each given those before it.
        """
        log_prob = entropy = torch.zeros((), dtype=torch.float64)
        unroll = _Unroll(self)
        for decision in decisions:
            log_probs = unroll.log_probs(decision.name, decision.n_options)
            unroll.take(decision)
            log_prob = log_prob + log_probs[decision.taken]
            entropy = entropy - (log_probs.exp() * log_probs).sum()
        return log_prob, entropy

    def surrogate(
        self, samples: Sequence[tuple["ControllerChoice", float]], baseline: float
    ) -> torch.Tensor:
        """Compute what `update` ascends; its gradient is REINFORCE's."""
        total = torch.zeros((), dtype=torch.float64)
        for choice, reward in samples:
            log_prob, entropy = self.log_prob(choice.decisions)
            total = total + (reward - baseline) * log_prob + self.entropy * entropy
        return total / len(samples)

    def update(self, samples: Sequence[tuple["ControllerChoice", float]]) -> None:
        """Learn from one round of samples with their rewards, drawn since the last update."""
        mean = sum(reward for _, reward in samples) / len(samples)
        baseline = mean if self.baseline is None else self.baseline
        with one_thread(torch.device("cpu")):
            self._adam.zero_grad()
            (-self.surrogate(samples, baseline)).backward()  # type: ignore[no-untyped-call]
            self._adam.step()
        self.baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * mean

    def weight(self, name: str, *shape: int) -> torch.Tensor:
        """Give a weight, made when it is first asked for.

        Raises
        ------
        InputError
            If it was made with another shape.
        """
        if name not in self.weights:
            self._adam.add_param_group({"params": [self._new_weight(name, shape)]})
        weight = self.weights[name]
        if weight.shape != shape:
            raise InputError(
                f"controller: expected {name!r} with shape {tuple(weight.shape)} as before, got "
                f"{shape}; give a decision between other options another name"
            )
        return weight

    def _new_weight(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        weight = torch.empty(shape, dtype=torch.float64)
        weight.uniform_(-_INITIAL, _INITIAL, generator=generator)
        self.weights[name] = weight.requires_grad_()
        return weight

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copy all that `load_state_dict` needs to go on as if there had been no break."""
        state = {"drawn": torch.tensor(self._drawn)}
        if self.baseline is not None:
            state["baseline"] = torch.tensor(self.baseline, dtype=torch.float64)
        for name, weight in self.weights.items():
            state[f"weight {name}"] = weight.detach().clone()
            for key, value in self._adam.state[weight].items():
                state[f"{key} {name}"] = value.clone()
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Let a fresh controller go on from the `state_dict` of one with the same parameters."""
        self._drawn = int(state["drawn"])
        self.baseline = float(state["baseline"]) if "baseline" in state else None
        for key, value in state.items():
            kind, _, name = key.partition(" ")
            if kind == "weight":
                weight = self.weight(name, *value.shape)
                with torch.no_grad():
                    weight.copy_(value)
                self._adam.state[weight] = {
                    part: state[f"{part} {name}"].clone()
                    for part in _ADAM
                    if f"{part} {name}" in state
                }


class ControllerChoice:
    """An `optuna.Trial` in shape, whose choices a controller makes.

    Attributes
    ----------
    params : dict
        What was chosen so far, by name.
    decisions : list of Decision
        The same as tokens, in order.
    """

    def __init__(self, controller: LstmController, rng: np.random.Generator) -> None:
        self.params: dict[str, bool | int | float | str] = {}
        self.decisions: list[Decision] = []
        self._unroll = _Unroll(controller)
        self._rng = rng

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose an integer of [low, high]; each is an option."""
        return self.suggest_categorical(name, range(low, high + 1))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose one of 5 numbers from low to high, evenly spaced (in their logarithm if `log`)."""
        levels = (np.geomspace if log else np.linspace)(low, high, _LEVELS)
        options: list[float] = levels.tolist()
        return self.suggest_categorical(name, options)

    def suggest_categorical(self, name: str, choices: Sequence[Option]) -> Option:
        """Choose one of `choices`."""
        with torch.no_grad(), one_thread(torch.device("cpu")):
            probabilities = self._unroll.log_probs(name, len(choices)).exp().numpy()
            cumulative = np.cumsum(probabilities)
            drawn = self._rng.random() * cumulative[-1]
            decision = Decision(name, len(choices), int((cumulative <= drawn).sum()))
            self._unroll.take(decision)
        self.decisions.append(decision)
        self.params[name] = choices[decision.taken]
        return choices[decision.taken]


class _Unroll:
    """The LSTM on its way along the decisions of one sample."""

    def __init__(self, controller: LstmController) -> None:
        self._weight = controller.weight
        self._width = controller.hidden
        self._input = self._weight("start", self._width)
        self._output = self._cell = torch.zeros(self._width, dtype=torch.float64)

    def log_probs(self, name: str, n_options: int) -> torch.Tensor:
        """Go on to a decision; log-probabilities ``(n_options,)``."""
        weight, width = self._weight, self._width
        gates = (
            weight("lstm input", 4 * width, width) @ self._input
            + weight("lstm recurrent", 4 * width, width) @ self._output
            + weight("lstm bias", 4 * width)
        )
        enter, keep, new, show = gates.chunk(4)
        self._cell = keep.sigmoid() * self._cell + enter.sigmoid() * new.tanh()
        self._output = show.sigmoid() * self._cell.tanh()
        logits = weight(f"softmax {name}", n_options, width) @ self._output
        return (logits + weight(f"bias {name}", n_options)).log_softmax(0)

    def take(self, decision: Decision) -> None:
        """Decide."""
        embedding = self._weight(f"embedding {decision.name}", decision.n_options, self._width)
        self._input = embedding[decision.taken]
