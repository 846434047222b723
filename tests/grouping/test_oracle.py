import itertools

import numpy as np
import pytest
from grouping_oracle import SlowGrouper
from grouping_streams import draw_stream

from trautoml.grouping import MarkovGrouper


def assert_agrees(decision, expected):
    for name in ("kind", "group", "tested_group"):
        assert getattr(decision, name) == expected[name]
    assert decision.posterior == pytest.approx(expected["posterior"], rel=1e-10)
    # Relative to the logarithm's size, and absolutely for logarithms near 0.
    np.testing.assert_allclose(
        decision.log_posterior, expected["log_posterior"], rtol=1e-10, atol=1e-10
    )
    for name in ("statistic", "p_value"):
        if expected[name] is None:
            assert getattr(decision, name) is None
        else:
            assert getattr(decision, name) == pytest.approx(expected[name], rel=1e-10)


def run(tasks, **params):
    fast, slow, kinds = MarkovGrouper(**params), SlowGrouper(**params), []
    for i, trials in enumerate(tasks):
        if i:
            np.testing.assert_allclose(
                fast.log_posterior(trials), slow.log_posterior(trials), rtol=1e-10, atol=1e-10
            )
        decision = fast.learn_one(trials)
        assert_agrees(decision, slow.learn(trials))
        kinds.append(decision.kind)
        assert fast.n_clusters == slow.K
        np.testing.assert_allclose(fast.covariances_, [slow.sigma(V) for V in slow.groups], 1e-10)
    assert fast.labels_.tolist() == slow.labels
    return kinds


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("covariance", "pairing"),
    list(itertools.product(("trials", "paper"), ("anderson", "average"))),
)
def test_streams_with_default_sizes(covariance, pairing, seed):
    kinds = run(draw_stream(seed), covariance=covariance, pairing=pairing, seed=seed)
    assert {"opened", "joined"} <= set(kinds)


def test_the_streams_hold_all_three_kinds_of_decision():
    kinds = {k for seed in range(3) for k in run(draw_stream(seed), n_clusters=100)}
    assert kinds == {"opened", "joined", "split"}


@pytest.mark.parametrize("n_clusters", [1, 2, 5, 64])
@pytest.mark.parametrize("B", [1, 2, 4])
def test_doubling_and_unequal_numbers_of_trials(n_clusters, B):
    # T below, at and above N, as later tasks have up to three times the trials of the first.
    tasks = draw_stream(7, B=B, T=(B + 2, 3 * B + 4, B + 3), n_kinds=6)
    run(tasks, n_clusters=n_clusters)


@pytest.mark.parametrize(
    "params",
    [
        {"alpha": 0.0},
        {"alpha": 0.5},
        {"gamma": 0.0},
        {"gamma": 5.0},
        {"gamma": float("inf"), "alpha": 0.05},
        {"sigma0_sq": 1e-2, "prior_strength": 10.0},
        {"prior_strength": 0.0, "score_resolution": 0.0},
        {"score_resolution": 0.01},
        {"preset_low": -3.0, "preset_high": 2.0, "seed": 9},
    ],
)
def test_parameters(params):
    run(draw_stream(11, T=(10,)), n_clusters=200, **params)


def test_one_trial_without_the_test():
    run(draw_stream(12, T=(1, 2, 3)), alpha=0.0)
