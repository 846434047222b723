import itertools
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from automl_support import ScriptedEngine, chain, scored, stripes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trautoml.jobs import TrainingResult
from trautoml.search import SearchBudget
from trautoml.search._proposing import Proposal
from trautoml.search.metaqnn import MetaQnnSearcher, QProposer, QTable, exploration
from trautoml.spaces.layers import LayerSpace, Step
from trautoml.spec import ModelSpec

TABLE_2 = {
    1.0: 1500, 0.9: 100, 0.8: 100, 0.7: 100,
    0.6: 150, 0.5: 150, 0.4: 150, 0.3: 150, 0.2: 150, 0.1: 150,
}  # fmt: skip

Walk = list[tuple[Hashable, Sequence[Hashable], Hashable]]


def quality(spec: ModelSpec) -> float:
    """A fixed merit of every spec in (0, 1), as good as random."""
    return int(spec.digest, 16) / 16**16


def draw(table: QTable, space: LayerSpace, epsilon: float, seed: int = 0) -> tuple[Step, ...]:
    rng = np.random.default_rng(seed)
    return space.walk(lambda s, a: table.choose(s, a, epsilon=epsilon, rng=rng))


# --- exploration ------------------------------------------------------------------------------


def test_exploration_is_the_paper_s_table_at_2700_models() -> None:
    assert sum(TABLE_2.values()) == 2700
    assert Counter(exploration(model / 2700) for model in range(2700)) == TABLE_2
    shares = [exploration(share) for share in np.linspace(0, 1, 1001)]
    assert shares == sorted(shares, reverse=True)
    assert exploration(1.0) == 0.1


# --- Q-values ---------------------------------------------------------------------------------


def test_an_update_goes_backwards_through_a_walk() -> None:
    table = QTable(learning_rate=0.1, discount=0.9)
    table.update([("start", "ab", "a"), ("end", "cd", "c")], 1.0)
    c = 0.5 + 0.1 * (1.0 - 0.5)
    assert table.values("end", "cd") == [pytest.approx(c), 0.5]
    # Eq. 3, whose maximum is over what is known after the last step's update
    assert table.values("start", "ab") == [pytest.approx(0.5 + 0.1 * (0.9 * c - 0.5)), 0.5]
    table.update([("start", "ab", "b"), ("end", "cd", "d")], 0.0)
    assert table.values("end", "d") == [pytest.approx(0.45)]
    assert table.values("start", "b") == [pytest.approx(0.5 + 0.1 * (0.9 * c - 0.5))]


class Diamonds:
    """A decision process whose states are reached in many ways: layer, and sum so far."""

    DEPTH, ACTIONS = 3, (0, 1, 2)

    def __init__(self, seed: int) -> None:
        self.rewards = np.random.default_rng(seed).random(2 * self.DEPTH + 1)

    def walk(self, actions: Sequence[int]) -> tuple[Walk, float]:
        sums = [sum(actions[:i]) for i in range(self.DEPTH + 1)]
        steps = [((i, sums[i]), self.ACTIONS, actions[i]) for i in range(self.DEPTH)]
        return steps, float(self.rewards[sums[-1]])

    def solve(self, discount: float) -> dict[tuple[tuple[int, int], int], float]:
        """Dynamic programming, the last layer first."""
        worth = {(self.DEPTH, total): float(r) for total, r in enumerate(self.rewards)}
        values = {}
        for layer in reversed(range(self.DEPTH)):
            factor = discount if layer < self.DEPTH - 1 else 1.0
            for total in range(2 * layer + 1):
                for action in self.ACTIONS:
                    after = worth[layer + 1, total + action]
                    values[(layer, total), action] = factor * after
                worth[layer, total] = max(values[(layer, total), a] for a in self.ACTIONS)
        return values


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 0.8]))
def test_q_values_converge_to_the_solution(seed: int, discount: float) -> None:
    process, rng = Diamonds(seed), np.random.default_rng(seed)
    table = QTable(learning_rate=0.1, discount=discount)
    walks = [process.walk(actions) for actions in itertools.product((0, 1, 2), repeat=3)]
    for index in rng.integers(len(walks), size=20000):
        table.update(*walks[index])
    for (state, action), value in process.solve(discount).items():
        assert table.values(state, [action]) == [pytest.approx(value, abs=1e-4)]


def test_a_choice_is_greedy_but_for_epsilon_and_fair_among_equals() -> None:
    table, rng = QTable(), np.random.default_rng(0)
    for action in "ab":
        table.update([("s", "abcd", action)], 1.0)
    n = 4000
    for epsilon in (0.0, 0.4, 1.0):
        drawn = Counter(table.choose("s", "abcd", epsilon=epsilon, rng=rng) for _ in range(n))
        share = {"ab": (1 - epsilon) / 2 + epsilon / 4, "cd": epsilon / 4}
        expected = [share[pair] * n for pair in ("ab", "cd") for _ in pair if share[pair]]
        assert sum(drawn.values()) == n
        observed = [drawn[action] for action in "abcd"[: len(expected)]]
        assert stats.chisquare(observed, expected).pvalue > 1e-3


# --- on layers --------------------------------------------------------------------------------


def test_the_greedy_walk_finds_the_best_network() -> None:
    """A reward of the last layer, its depth and its size: then a state tells all that counts."""
    space, table = LayerSpace(8, max_depth=3), QTable(learning_rate=0.3)
    walks = [draw(table, space, epsilon=1.0, seed=seed) for seed in range(2500)]
    ends = sorted({repr(walk[-1].state) for walk in walks})
    rewards = dict(zip(ends, np.random.default_rng(0).random(len(ends)).tolist(), strict=True))
    assert len(ends) > 50
    for index in np.random.default_rng(1).integers(len(walks), size=20000):
        table.update(walks[index], rewards[repr(walks[index][-1].state)])
    found = draw(table, space, epsilon=0.0)
    assert rewards[repr(found[-1].state)] == max(rewards.values())
    assert table.values(found[0].state, [found[0].action]) == [
        pytest.approx(max(rewards.values()), abs=1e-2)
    ]


# --- the proposer -----------------------------------------------------------------------------


def test_each_new_model_brings_100_replays() -> None:
    proposer = QProposer(LayerSpace(8), QTable(), seed=0)
    [proposal] = proposer.propose(1, 0.0)
    last = proposal.memo[-1]
    proposer.observe([(proposal, 0.9)])
    value = 0.9 + (0.5 - 0.9) * 0.99**100
    assert proposer.table.values(last.state, [last.action]) == [pytest.approx(value)]
    proposer.observe([(proposal, 0.9)])  # an old one brings none
    assert proposer.table.values(last.state, [last.action]) == [pytest.approx(value)]
    proposer.observe([])


def test_what_is_proposed_is_new_as_long_as_there_is_something_new() -> None:
    proposer = QProposer(LayerSpace(28), QTable(), seed=1)
    proposals: list[Proposal] = []
    for i in range(25):
        proposals += proposer.propose(4, i / 25)
        proposer.observe([(p, 0.9) for p in proposals[-4:]])
    assert len({p.spec for p in proposals}) == 100
    few = QProposer(LayerSpace(8, max_depth=1), QTable(), seed=0)
    proposals = few.propose(60, 0.0)
    assert len({p.spec for p in proposals}) == 12
    assert len({p.spec for p in proposals[:8]}) == 8


def test_warm_starts_of_the_space_are_learned_from_and_not_proposed_again() -> None:
    space = LayerSpace(8, max_depth=1)
    warm = [QProposer(space, QTable(), seed=0).propose(1, 0.0)[0].spec for _ in range(2)]
    proposer = QProposer(space, QTable(), seed=0)
    adopted = proposer.adopt(warm[0])
    assert space.spec(adopted.memo) == warm[0]
    assert warm[0] not in {p.spec for p in proposer.propose(6, 0.0)}
    foreign = proposer.adopt(chain())
    assert foreign.spec == chain()
    assert foreign.memo is None


def test_walks_are_those_of_the_task_s_images() -> None:
    [proposal] = MetaQnnSearcher(seed=3).proposer(stripes()).propose(1, 0.0)
    assert LayerSpace(8).walk_of(proposal.spec) == proposal.memo


def test_the_paper_s_q_values_and_those_of_a_search() -> None:
    table = QTable()
    assert (table.learning_rate, table.discount, table.initial) == (0.01, 1.0, 0.5)
    proposer = MetaQnnSearcher().proposer(stripes())
    assert isinstance(proposer, QProposer)
    assert (proposer.table.learning_rate, proposer.table.discount) == (0.1, 1.0)
    assert proposer.table.initial == stripes().chance


# --- the search -------------------------------------------------------------------------------


def structured(spec: ModelSpec, epochs: float) -> TrainingResult:
    """Score wide and deep networks well, with some noise."""
    layers = spec.structure["layers"]
    width = sum(layer["channels"] for layer in layers) / len(layers) / 64
    return scored(0.5 * width + 0.04 * len(layers) + 0.05 * quality(spec), epochs)


def search(seed: int = 0, trials: int = 40, shuffle: int | None = None) -> list[tuple]:
    searcher = MetaQnnSearcher(seed=seed)
    engine = ScriptedEngine(structured, shuffle=shuffle)
    result = searcher.search(stripes(), budget=SearchBudget(trials, 2), engine=engine)
    return [(record.trial, record.spec, record.score) for record in result.history]


def test_a_search_is_a_function_of_its_seed_only() -> None:
    assert search() == search(shuffle=1) == search(shuffle=2)
    assert search() != search(seed=1)
    assert len({spec for _, spec, _ in search()}) == 40


def test_late_candidates_are_better_than_early_ones() -> None:
    histories = [[score for *_, score in search(seed, trials=60)] for seed in range(4)]
    early = [np.mean(history[:30]) for history in histories]
    late = [np.mean(history[-10:]) for history in histories]
    assert np.mean(late) > np.mean(early) + 0.05
