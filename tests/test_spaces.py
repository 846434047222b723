import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trautoml.errors import SpecError
from trautoml.spaces import CellSpace, ChainSpace, RandomChoice, SearchSpace
from trautoml.spaces._base import Choice, GivenChoice
from trautoml.spec import Hyperparameters, ModelSpec

SPACE = ChainSpace()
seeds = st.integers(0, 2**32 - 1)

ALLOWED = {
    "kernel": {3, 5},
    "channels": {8, 16, 32, 64},
    "stride": {1, 2},
    "pool_kernel": {1, 2, 3},
    "pool_stride": {1, 2},
}


@pytest.fixture(scope="module")
def many() -> list[ModelSpec]:
    rng = np.random.default_rng(1)
    return [SPACE.sample(rng) for _ in range(3000)]


@given(seeds)
def test_the_same_generator_state_gives_the_same_spec(seed: int) -> None:
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
    for _ in range(3):
        assert SPACE.sample(rng).to_json() == SPACE.sample(other).to_json()


def test_the_generator_moves_on(many: list[ModelSpec]) -> None:
    assert len(set(many)) == len(many)


@given(seeds)
def test_every_draw_lies_in_its_range(seed: int) -> None:
    spec = SPACE.sample(np.random.default_rng(seed))
    assert spec.architecture == "chain"
    assert 1 <= len(spec.structure["layers"]) <= 4
    for layer in spec.structure["layers"]:
        assert layer.keys() == ALLOWED.keys()
        assert all(layer[name] in values for name, values in ALLOWED.items())
        assert layer["stride"] == 2 or (layer["pool_kernel"] > 1 and layer["pool_stride"] == 2)
    assert len(spec.structure["dense"]) <= 2
    assert set(spec.structure["dense"]) <= {32, 64, 128, 256}
    assert spec.structure["batch_norm"] in {True, False}
    assert 5e-3 <= spec.hyper.learning_rate <= 0.3
    assert 0.5 <= spec.hyper.momentum <= 0.95
    assert 1e-6 <= spec.hyper.weight_decay <= 1e-2
    assert spec.hyper.batch_size in {16, 32, 64, 128}
    assert 0.3 <= spec.hyper.init_sd <= 2.0


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (lambda s: len(s.structure["layers"]), [1, 2, 3, 4]),
        (lambda s: len(s.structure["dense"]), [0, 1, 2]),
        (lambda s: s.structure["batch_norm"], [False, True]),
        (lambda s: s.structure["layers"][0]["kernel"], [3, 5]),
        (lambda s: s.structure["layers"][0]["channels"], [8, 16, 32, 64]),
        (lambda s: s.structure["layers"][0]["stride"], [1, 2]),
        (lambda s: s.hyper.batch_size, [16, 32, 64, 128]),
    ],
)
def test_choices_are_uniform(
    many: list[ModelSpec], value: Callable[[ModelSpec], int], options: list[int]
) -> None:
    drawn = [value(spec) for spec in many]
    assert set(drawn) == set(options)
    assert stats.chisquare([drawn.count(option) for option in options]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("learning_rate", stats.loguniform(5e-3, 0.3)),
        ("momentum", stats.uniform(0.5, 0.45)),
        ("weight_decay", stats.loguniform(1e-6, 1e-2)),
        ("init_sd", stats.loguniform(0.3, 2.0)),
    ],
)
def test_numbers_are_uniform_or_log_uniform(
    many: list[ModelSpec],
    name: str,
    expected: "stats.rv_continuous",
) -> None:
    drawn = [getattr(spec.hyper, name) for spec in many]
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-3


def test_draws_are_independent_of_each_other(many: list[ModelSpec]) -> None:
    numbers = np.array(
        [
            [math.log(s.hyper.learning_rate), s.hyper.momentum, math.log(s.hyper.weight_decay),
             math.log(s.hyper.init_sd), s.hyper.batch_size, len(s.structure["layers"])]
            for s in many
        ]
    )  # fmt: skip
    correlation = np.corrcoef(numbers.T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / math.sqrt(len(many))


@given(st.integers(0, 2**32 - 1), st.integers(-5, 5), st.integers(0, 5))
def test_random_choice_draws_integers_with_both_ends(seed: int, low: int, width: int) -> None:
    choice = RandomChoice(np.random.default_rng(seed))
    drawn = [choice.suggest_int("n", low, low + width) for _ in range(150)]
    assert set(drawn) == set(range(low, low + width + 1))
    assert choice.params == {"n": drawn[-1]}


class _Extreme:
    """A generator that always gives one end of the range."""

    def __init__(self, end: str) -> None:
        self.end = end

    def uniform(self, low: float, high: float) -> float:
        return low if self.end == "low" else high


@given(
    st.floats(1e-12, 1e6),
    st.floats(1.0, 1e6),
    st.sampled_from(["low", "high"]),
    st.booleans(),
)
def test_rounding_never_leaves_the_range(low: float, factor: float, end: str, log: bool) -> None:
    high = low * factor
    drawn = RandomChoice(_Extreme(end)).suggest_float("x", low, high, log=log)  # type: ignore[arg-type]
    assert low <= drawn <= high


def test_a_trial_given_the_same_params_gives_the_same_spec() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for seed in range(200):
        choice = RandomChoice(np.random.default_rng(seed))
        spec = SPACE.define(choice)
        study.enqueue_trial(choice.params)
        trial = study.ask()
        assert SPACE.define(trial).to_json() == spec.to_json()
        assert trial.params == choice.params
        assert SPACE.define(optuna.trial.FixedTrial(choice.params)) == spec


def test_optuna_sees_one_distribution_for_each_name() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen: dict[str, optuna.distributions.BaseDistribution] = {}
    for _ in range(100):
        trial = study.ask()
        SPACE.define(trial)
        for name, distribution in trial.distributions.items():
            assert seen.setdefault(name, distribution) == distribution
        study.tell(trial, 0.0)
    assert len(seen) == 2 + 2 + 1 + 5 + 4 * 6


# --- choices that are given -------------------------------------------------------------------


@given(seeds)
def test_the_choices_amount_to_the_spec_and_back(seed: int) -> None:
    choice = RandomChoice(np.random.default_rng(seed))
    spec = SPACE.define(choice)
    params = SPACE.params_of(spec)
    assert params == choice.params
    assert {name: type(value) for name, value in params.items()} == {
        name: type(value) for name, value in choice.params.items()
    }
    again = SPACE.define(GivenChoice(json.loads(json.dumps(params))))
    assert again.to_json() == spec.to_json()


def altered(spec: ModelSpec, **structure: Any) -> ModelSpec:
    return replace(spec, structure={**spec.structure, **structure})


LAYER = {"kernel": 3, "channels": 8, "stride": 1, "pool_kernel": 2, "pool_stride": 2}
OUTSIDE = {
    "other architecture": lambda s: replace(s, architecture="cells"),
    "no layer": lambda s: altered(s, layers=[]),
    "five layers": lambda s: altered(s, layers=[LAYER] * 5),
    "odd width": lambda s: altered(s, layers=[LAYER | {"channels": 24}]),
    "narrow": lambda s: altered(s, layers=[LAYER | {"channels": 4}]),
    "no width": lambda s: altered(s, layers=[LAYER | {"channels": 0}]),
    "wide": lambda s: altered(s, layers=[LAYER | {"channels": 128}]),
    "large kernel": lambda s: altered(s, layers=[LAYER | {"kernel": 7}]),
    "large stride": lambda s: altered(s, layers=[LAYER | {"stride": 3}]),
    "whole map": lambda s: altered(s, layers=[LAYER | {"pool_kernel": 1, "pool_stride": 1}]),
    "stride without pooling": lambda s: altered(s, layers=[LAYER | {"pool_kernel": 1}]),
    "later layer": lambda s: altered(s, layers=[LAYER, LAYER | {"kernel": 1}]),
    "three dense layers": lambda s: altered(s, dense=[64, 64, 64]),
    "odd dense layer": lambda s: altered(s, dense=[100]),
    "small dense layer": lambda s: altered(s, dense=[16]),
    "more structure": lambda s: altered(s, dropout=0.5),
    "more in a layer": lambda s: altered(s, layers=[LAYER | {"dilation": 2}]),
    "whole learning rate": lambda s: replace(s, hyper=replace(s.hyper, learning_rate=1.0)),
    "small learning rate": lambda s: replace(s, hyper=replace(s.hyper, learning_rate=1e-3)),
    "momentum": lambda s: replace(s, hyper=replace(s.hyper, momentum=0.0)),
    "weight decay": lambda s: replace(s, hyper=replace(s.hyper, weight_decay=0.0)),
    "odd batch size": lambda s: replace(s, hyper=replace(s.hyper, batch_size=48)),
    "large batch size": lambda s: replace(s, hyper=replace(s.hyper, batch_size=256)),
    "init_sd": lambda s: replace(s, hyper=replace(s.hyper, init_sd=2.5)),
}


@pytest.mark.parametrize("change", OUTSIDE.values(), ids=OUTSIDE)
def test_specs_outside_the_space_have_no_choices(
    change: Callable[[ModelSpec], ModelSpec], many: list[ModelSpec]
) -> None:
    for spec in many[:20]:
        assert SPACE.params_of(spec) is not None
        assert SPACE.params_of(change(spec)) is None


def test_those_of_another_space_have_none(many: list[ModelSpec]) -> None:
    assert SPACE.params_of(CellSpace().sample(np.random.default_rng(0))) is None
    assert CellSpace().params_of(many[0]) is None


def test_a_space_that_does_not_tell_them_has_none() -> None:
    class Mute(SearchSpace):
        def define(self, choice: Choice) -> ModelSpec:
            return ModelSpec("chain", {}, Hyperparameters(0.1, 0.9, 0.0, 16, 1.0))

    space = Mute()
    assert space.params_of(space.sample(np.random.default_rng(0))) is None


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9))
def test_a_given_integer_lies_between_its_ends(value: int, low: int, high: int) -> None:
    choice = GivenChoice({"n": value})
    if low <= value <= high:
        assert choice.suggest_int("n", low, high) == value
    else:
        says = rf"n: expected a whole number in \[{low}, {high}\], got {value}"
        with pytest.raises(SpecError, match=says):
            choice.suggest_int("n", low, high)


@given(st.floats(allow_nan=True), st.floats(-1e3, 1e3), st.floats(0, 1e3), st.booleans())
def test_a_given_number_lies_between_its_ends(
    value: float, low: float, width: float, log: bool
) -> None:
    high = low + width
    for given_value in (value, low, high):
        choice = GivenChoice({"x": given_value})
        if low <= given_value <= high:
            assert choice.suggest_float("x", low, high, log=log) == given_value
        else:
            with pytest.raises(SpecError, match="x: expected a number in"):
                choice.suggest_float("x", low, high, log=log)


@pytest.mark.parametrize(
    ("choices", "known", "unknown"),
    [
        ([1, 2], [1, 2], [3, 1.0, True, "1", None]),
        ([True, False], [True, False], [1, 0, "True"]),
        (["a", "b"], ["a", "b"], ["c", "", b"a"]),
        ([0.5, 1.0], [0.5, 1.0], [1, True]),
    ],
)
def test_a_given_option_is_one_of_the_choices(
    choices: list[Any], known: list[Any], unknown: list[Any]
) -> None:
    for value in known:
        found = GivenChoice({"o": value}).suggest_categorical("o", choices)
        assert (found, type(found)) == (value, type(value))
    for value in unknown:
        with pytest.raises(SpecError, match="o: expected one of"):
            GivenChoice({"o": value}).suggest_categorical("o", choices)


def test_what_is_not_a_number_is_refused() -> None:
    for value in ("3", 3.0, None):
        with pytest.raises(SpecError, match="n: expected a whole number"):
            GivenChoice({"n": value}).suggest_int("n", 0, 9)
    for value in ("3", None, math.nan):
        with pytest.raises(SpecError, match="x: expected a number"):
            GivenChoice({"x": value}).suggest_float("x", 0.0, 9.0)
    assert type(GivenChoice({"x": 3}).suggest_float("x", 0.0, 9.0)) is float


def test_a_choice_that_is_not_given_is_named() -> None:
    choice = GivenChoice({"b": 1, "a": 2})
    for suggest in (
        lambda: choice.suggest_int("c", 0, 1),
        lambda: choice.suggest_float("c", 0.0, 1.0),
        lambda: choice.suggest_categorical("c", [0, 1]),
    ):
        with pytest.raises(SpecError, match=r"c: expected a choice of this name, got \['a', 'b'\]"):
            suggest()
