import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from automl_support import ScriptedEngine, chain, scored, stripes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats

from trautoml.errors import InputError
from trautoml.jobs import TrainingResult
from trautoml.search import SearchBudget
from trautoml.search._controller import ControllerChoice, Decision, LstmController
from trautoml.search.nas_rl import NasRlSearcher
from trautoml.spaces import ChainSpace, SearchSpace
from trautoml.spaces._base import Choice, GivenChoice
from trautoml.spec import Hyperparameters, ModelSpec

Sample = tuple[Decision, ...]


class ToySpace(SearchSpace):
    """Two or three decisions: the third is asked for by one option of the first only."""

    def define(self, choice: Choice) -> ModelSpec:
        structure = {
            "kind": choice.suggest_categorical("kind", ["plain", "wide", "deep"]),
            "size": choice.suggest_int("size", 1, 3),
        }
        if structure["kind"] == "deep":
            structure["levels"] = choice.suggest_int("levels", 1, 2)
        return ModelSpec("toy", structure, Hyperparameters(0.1, 0.9, 0.0, 16, 1.0))


TOY = ToySpace()
PATHS: list[Sample] = [
    (Decision("kind", 3, kind), Decision("size", 3, size), *levels)
    for kind, size in itertools.product(range(3), repeat=2)
    for levels in ([(Decision("levels", 2, i),) for i in range(2)] if kind == 2 else [()])
]
"""All of the toy's samples."""

REWARDS = dict(zip(PATHS, np.random.default_rng(0).random(len(PATHS)).tolist(), strict=True))


def toy_reward(choice: ControllerChoice) -> float:
    return REWARDS[tuple(choice.decisions)]


def rounds(
    controller: LstmController, n: int, space: SearchSpace = TOY, m: int = 4
) -> Iterator[list[tuple[ControllerChoice, float]]]:
    """Sample, reward and update n times."""
    for _ in range(n):
        choices = [controller.choice() for _ in range(m)]
        for choice in choices:
            space.define(choice)
        samples = [(c, toy_reward(c) if space is TOY else math.sin(len(c.params))) for c in choices]
        controller.update(samples)
        yield samples


def trained(seed: int = 0, n: int = 5) -> LstmController:
    controller = LstmController(seed=seed)
    list(rounds(controller, n))
    return controller


def log_prob(controller: LstmController, *decisions: Decision) -> float:
    return float(controller.log_prob(decisions)[0].detach())


def chances(controller: LstmController) -> list[float]:
    return [math.exp(log_prob(controller, *path)) for path in PATHS]


# --- the distribution -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 20])
def test_probabilities_are_those_of_the_samples(n: int) -> None:
    controller = trained(n=n)
    expected = chances(controller)
    assert sum(expected) == pytest.approx(1)
    drawn = Counter()
    for _ in range(1200):
        choice = controller.choice()
        TOY.define(choice)
        drawn[tuple(choice.decisions)] += 1
    assert set(drawn) <= set(PATHS)
    observed = [drawn[path] for path in PATHS]
    assert stats.chisquare(observed, 1200 * np.array(expected)).pvalue > 1e-3


def test_it_begins_about_uniform() -> None:
    controller = LstmController(seed=4)
    for decision in (Decision("a", 5, 0), Decision("b", 2, 1)):
        n = decision.n_options
        assert log_prob(controller, decision) == pytest.approx(-math.log(n), abs=0.15)
        entropy = controller.log_prob([decision])[1].detach()
        assert float(entropy) == pytest.approx(math.log(n), abs=0.01)


def test_entropy_is_summed_along_the_sample() -> None:
    controller = trained(n=20)
    for path in PATHS:
        total, before = 0.0, 0.0
        for i, decision in enumerate(path):
            branches = [decision._replace(taken=k) for k in range(decision.n_options)]
            logs = [log_prob(controller, *path[:i], b) - before for b in branches]
            total -= sum(math.exp(log) * log for log in logs)
            before += logs[decision.taken]
        assert float(controller.log_prob(path)[1].detach()) == pytest.approx(total)


def test_a_later_decision_depends_on_an_earlier_one() -> None:
    """The best size differs by kind: no product of marginals has both."""
    controller = LstmController(seed=0, learning_rate=0.05, entropy=0.0)
    best = {"plain": 1, "wide": 3}
    for _ in range(150):
        samples = []
        for _ in range(8):
            choice = controller.choice()
            TOY.define(choice)
            kind = str(choice.params["kind"])
            samples.append((choice, float(best.get(kind) == choice.params["size"])))
        # of each kind one half of the reward, so that neither is given up
        shares = Counter(choice.params["kind"] for choice, _ in samples)
        controller.update([(c, r / shares[c.params["kind"]]) for c, r in samples])
    plain, wide = Decision("kind", 3, 0), Decision("kind", 3, 1)
    for kind, size in ((plain, 0), (wide, 2)):
        alone = log_prob(controller, kind)
        both = log_prob(controller, kind, Decision("size", 3, size))
        assert math.exp(both - alone) > 0.8


# --- the gradient -----------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_the_gradient_of_a_bandit_is_the_analytical_one(n: int, seed: int) -> None:
    controller, rng = LstmController(seed=seed, entropy=0.0), np.random.default_rng(seed)
    samples = []
    for _ in range(5):
        choice = controller.choice()
        choice.suggest_int("arm", 1, n)
        samples.append((choice, float(rng.random())))
    baseline = float(rng.random())
    pi = np.exp([log_prob(controller, Decision("arm", n, i)) for i in range(n)])
    # of a softmax, d log pi(a) / d logit is onehot(a) - pi
    terms = [
        (reward - baseline) * (np.eye(n)[choice.decisions[0].taken] - pi)
        for choice, reward in samples
    ]
    surrogate = controller.surrogate(samples, baseline)
    [gradient] = torch.autograd.grad(surrogate, [controller.weights["bias arm"]])
    np.testing.assert_allclose(gradient.numpy(), np.mean(terms, axis=0), atol=1e-12)


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_the_expected_gradient_is_that_of_the_expected_reward(baseline: float) -> None:
    controller = trained(n=10)
    controller.entropy = 0.0
    weights = list(controller.weights.values())

    def gradient(of: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(of, weights, allow_unused=True, materialize_grads=True))

    expected = torch.zeros(())
    total = [torch.zeros_like(weight) for weight in weights]
    for path, chance in zip(PATHS, chances(controller), strict=True):
        expected = expected + REWARDS[path] * controller.log_prob(path)[0].exp()
        choice = controller.choice()
        choice.decisions = list(path)
        parts = gradient(controller.surrogate([(choice, REWARDS[path])], baseline))
        total = [so_far + chance * part for so_far, part in zip(total, parts, strict=True)]
    for a, b in zip(total, gradient(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_entropy_bonus_flattens_the_policy() -> None:
    sharp, flat = (LstmController(seed=1, entropy=e, learning_rate=0.05) for e in (0.0, 2.0))
    for controller in (sharp, flat):
        list(rounds(controller, 40))
    assert max(chances(flat)) < 0.25
    assert max(chances(sharp)) > 0.5


# --- the update -------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_baseline_is_the_moving_average_of_the_rounds_before(
    rewards: list[list[float]],
) -> None:
    controller = LstmController(baseline_decay=0.7)
    assert controller.baseline is None
    expected = sum(rewards[0]) / len(rewards[0])
    for round_ in rewards:
        choices = [controller.choice() for _ in round_]
        for choice in choices:
            TOY.define(choice)
        controller.update(list(zip(choices, round_, strict=True)))
        expected = 0.7 * expected + 0.3 * sum(round_) / len(round_)
        assert controller.baseline == pytest.approx(expected)


def test_equal_rewards_teach_nothing_in_the_first_round() -> None:
    controller = LstmController(entropy=0.0)
    before = chances(controller)
    choices = [controller.choice() for _ in range(4)]
    for choice in choices:
        TOY.define(choice)
    controller.update([(choice, 0.9) for choice in choices])
    assert chances(controller) == pytest.approx(before)


@pytest.mark.parametrize("seed", range(5))
def test_the_policy_concentrates_on_the_best_arm(seed: int) -> None:
    controller = LstmController(seed=seed, learning_rate=0.05)
    rewards = [0.2, 0.5, 0.3, 0.8]
    for _ in range(60):
        choices = [controller.choice() for _ in range(4)]
        samples = [(c, rewards[c.suggest_int("arm", 0, 3)]) for c in choices]
        controller.update(samples)
    assert math.exp(log_prob(controller, Decision("arm", 4, 3))) > 0.8


# --- reproducibility --------------------------------------------------------------------------


def test_weights_depend_on_seed_and_name_only() -> None:
    forwards, backwards, other = (LstmController(seed=s) for s in (1, 1, 2))
    for controller, names in ((forwards, "abc"), (backwards, "cba"), (other, "abc")):
        choice = controller.choice()
        for name in names:
            choice.suggest_int(name, 1, 3)
    assert forwards.weights.keys() == backwards.weights.keys()
    for name, weight in forwards.weights.items():
        assert torch.equal(weight, backwards.weights[name])
        assert not torch.equal(weight, other.weights[name])
    assert not torch.equal(forwards.weights["softmax a"], forwards.weights["softmax b"])


def test_the_global_generator_plays_no_part() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = trained()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert chances(trained()) == chances(first)
    assert chances(trained(seed=1)) != chances(first)


@pytest.mark.parametrize("n", [0, 3])
def test_it_goes_on_from_its_tensors(tmp_path: Path, n: int) -> None:
    controller = trained(n=n)
    save_file(controller.state_dict(), tmp_path / "state.safetensors")
    later = [[r for _, r in samples] for samples in rounds(controller, 4)]
    again = LstmController(seed=0)
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert [[r for _, r in samples] for samples in rounds(again, 4)] == later
    assert again.baseline == controller.baseline
    assert chances(again) == chances(controller)


def test_one_name_has_one_set_of_options() -> None:
    choice = LstmController().choice()
    choice.suggest_int("a", 1, 3)
    with pytest.raises(InputError, match=r"'softmax a' with shape .* another name"):
        choice.suggest_int("a", 1, 4)


# --- on the chain space -----------------------------------------------------------------------


def test_choices_of_the_chain_space() -> None:
    controller, levels = LstmController(seed=1), set()
    for _ in range(60):
        choice = controller.choice()
        spec = ChainSpace().define(choice)
        assert ChainSpace().define(GivenChoice(choice.params)) == spec
        assert [decision.name for decision in choice.decisions] == list(choice.params)
        assert f"conv{len(spec.structure['layers'])}_stride" not in choice.params
        levels.add(spec.hyper.learning_rate)
    assert sorted(levels) == pytest.approx([5e-3 * 60 ** (i / 4) for i in range(5)])
    assert all(5e-3 <= level <= 0.3 for level in levels)


def test_levels_are_even() -> None:
    drawn = {LstmController(seed=s).choice().suggest_float("x", -1.0, 1.0) for s in range(60)}
    assert sorted(drawn) == [-1.0, -0.5, 0.0, 0.5, 1.0]


def structured(spec: ModelSpec, epochs: float) -> TrainingResult:
    hyper = spec.hyper
    merit = 0.8 - 0.1 * abs(math.log(hyper.learning_rate / 0.04)) - abs(hyper.momentum - 0.8)
    return scored(merit + 0.1 * spec.structure["batch_norm"], epochs)


def search(seed: int = 0, trials: int = 24, shuffle: int | None = None) -> list[tuple]:
    engine = ScriptedEngine(structured, shuffle=shuffle)
    result = NasRlSearcher(seed=seed).search(
        stripes(), budget=SearchBudget(trials, 2), engine=engine, warm_start=[chain()]
    )
    return [(record.trial, record.spec, record.score) for record in result.history]


def test_a_search_is_a_function_of_its_seed_only() -> None:
    assert search() == search(shuffle=1) == search(shuffle=2)
    assert search() != search(seed=1)
    assert search()[0][:2] == (-1, chain())


def test_late_candidates_are_better_than_early_ones() -> None:
    histories = [[score for *_, score in search(seed, trials=80)] for seed in range(2)]
    early = [np.mean(history[:20]) for history in histories]
    late = [np.mean(history[-20:]) for history in histories]
    assert np.mean(late) > np.mean(early) + 0.1
