import json
import math
import pickle

import numpy as np
import pytest
from grouping_streams import draw_stream, same_state
from hypothesis import given, settings
from hypothesis import strategies as st

from trautoml import _core
from trautoml.errors import GroupingError
from trautoml.grouping import Decision, MarkovGrouper

seeds = st.integers(0, 2**32 - 1)
covariances = st.sampled_from(["trials", "paper"])
pairings = st.sampled_from(["anderson", "average"])
# A small K makes the stream double on the way.
cluster_counts = st.sampled_from([1, 3, 50, 1000])


def copied(grouper):
    return pickle.loads(pickle.dumps(grouper))  # noqa: S301


@given(seeds, cluster_counts, covariances, pairings)
@settings(max_examples=25)
def test_replayed_state_is_bit_equal_to_the_live_one_at_any_step(
    seed, n_clusters, covariance, pairing
):
    tasks = draw_stream(seed, n_tasks=12, n_kinds=5)
    live = MarkovGrouper(
        n_clusters=n_clusters, covariance=covariance, pairing=pairing, seed=seed % 100
    )
    probe, log = tasks[0] + 0.003, []
    for trials in tasks:
        decision = live.learn_one(trials)
        kept = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        log.append((trials.tolist(), Decision.from_dict(kept)))
        assert same_state(MarkovGrouper.from_log(live.params, log), live, probe)
        assert same_state(copied(live), live, probe)


@given(seeds, st.integers(1, 5), covariances, pairings)
@settings(max_examples=40)
def test_permuting_probes_and_presets_alike_changes_no_decision(seed, B, covariance, pairing):
    rng = np.random.default_rng(seed)
    columns = rng.permutation(B)
    presets = rng.uniform(size=(64, B))
    parameters = _core.MarkovParameters(
        gamma=0.2,
        alpha=0.005,
        sigma0_sq=3e-4,
        covariance=covariance,
        pairing=pairing,
        prior_strength=1.0,
        score_resolution=1e-3,
    )
    plain = _core.MarkovState(parameters, presets)
    permuted = _core.MarkovState(parameters, np.ascontiguousarray(presets[:, columns]))
    fresh = np.empty((0, B))
    for trials in draw_stream(seed, n_tasks=15, B=B, T=(B + 3,)):
        turned = np.ascontiguousarray(trials[:, columns])
        a, b = plain.predict(trials), permuted.predict(turned)
        assert (a.kind, a.group, a.tested_group) == (b.kind, b.group, b.tested_group)
        np.testing.assert_allclose(a.log_posterior, b.log_posterior, rtol=1e-9, atol=1e-9)
        plain.commit(trials, a.kind, a.group, fresh)
        permuted.commit(turned, b.kind, b.group, fresh)


modes = st.fixed_dictionaries({"covariance": covariances, "pairing": pairings})


@given(seeds, st.integers(1, 6), st.integers(100, 1000), modes, st.floats(0, 1))
@settings(max_examples=100)
def test_task_identical_to_the_only_member_of_a_group_joins_it(seed, B, K, mode, share):
    # The group's density at its own mean is |2 pi Sigma|^(-1/2). If the trials' variances are on
    # average at most S0's, then by the inequality of the means it is no less than that of an empty
    # cluster at its best, up to the rounding variance, and the prior favours the group by
    # (K - 1) w / (1 - w) = 0.22 (K - 1). A wider spread can make an empty cluster more probable.
    rng = np.random.default_rng(seed)
    grouper = MarkovGrouper(n_clusters=K, **mode)
    noise = rng.normal(size=(B + 3, B))
    noise *= math.sqrt(share * 3e-4 * K ** (-1 / B) / noise.var(axis=0).mean())
    trials = rng.uniform(size=B) + noise
    grouper.learn_one(trials)
    decision = grouper.learn_one(trials)
    assert (decision.kind, decision.group) == ("joined", 0)
    assert (decision.statistic, decision.p_value) == (0.0, 1.0)


@given(seeds, cluster_counts, covariances)
@settings(max_examples=25)
def test_posterior_sums_to_one(seed, n_clusters, covariance):
    grouper = MarkovGrouper(n_clusters=n_clusters, covariance=covariance)
    for trials in draw_stream(seed, n_tasks=10):
        log_posterior = grouper.log_posterior(trials)
        assert log_posterior.shape == (grouper.n_clusters,)
        assert np.exp(log_posterior).sum() == pytest.approx(1.0, abs=1e-12)
        decision = grouper.learn_one(trials)
        n_before = len(decision.log_posterior)
        np.testing.assert_array_equal(decision.log_posterior, log_posterior[:n_before])
        assert decision.posterior == pytest.approx(np.exp(log_posterior.max()), rel=1e-12)


@given(seeds, cluster_counts)
@settings(max_examples=25)
def test_predict_one_changes_nothing_and_input_is_not_mutated(seed, n_clusters):
    tasks = draw_stream(seed, n_tasks=8)
    predicting, silent = (MarkovGrouper(n_clusters=n_clusters) for _ in range(2))
    predicting.predict_one(np.full((9, 3), 0.5))  # another B, before anything is fixed
    for trials in tasks:
        trials.flags.writeable = False
        before = trials.copy()
        first = predicting.predict_one(trials)
        assert predicting.predict_one(trials) == first
        assert predicting.predict_one(tasks[0]).kind in {"opened", "joined", "split"}
        assert same_state(predicting, silent, tasks[-1])
        assert predicting.learn_one(trials, first) == silent.learn_one(trials) == first
        np.testing.assert_array_equal(trials, before)
    assert same_state(predicting, silent, tasks[-1])


scores = st.sampled_from([0.0, 1.0, 0.5, 0.1, 1 / 3, 0.999])


@st.composite
def degenerate_streams(draw):
    """Tasks without variance, with repeated rows or columns, repeated tasks, T = B + 1."""
    B = draw(st.integers(1, 4))
    T = B + draw(st.integers(1, 3))
    tasks = []
    for _ in range(draw(st.integers(2, 6))):
        shape = draw(st.sampled_from([(1, 1), (1, B), (T, 1), (T, B)]))
        values = draw(st.lists(scores, min_size=math.prod(shape), max_size=math.prod(shape)))
        trials = np.array(np.broadcast_to(np.reshape(values, shape), (T, B)))
        if draw(st.booleans()):
            trials += np.random.default_rng(draw(seeds)).normal(scale=1e-9, size=(T, B))
        tasks.append(tasks[0] if tasks and draw(st.booleans()) else trials)
    return tasks


def assert_no_nan(decision):
    assert 0.0 <= decision.posterior <= 1.0
    assert not np.isnan(decision.log_posterior).any()
    assert (decision.log_posterior <= 0.0).all()
    if decision.tested_group is not None:
        assert math.isfinite(decision.statistic)
        assert 0.0 <= decision.p_value <= 1.0


@given(degenerate_streams(), cluster_counts, covariances, pairings)
@settings(max_examples=200)
def test_degenerate_tasks_are_decided_without_nan(tasks, n_clusters, covariance, pairing):
    grouper = MarkovGrouper(n_clusters=n_clusters, covariance=covariance, pairing=pairing)
    for trials in tasks:
        assert_no_nan(grouper.learn_one(trials))
        assert not np.isnan(grouper.log_posterior(trials)).any()


@given(degenerate_streams(), covariances, pairings, st.sampled_from([1.0, 1e3, 1e6]))
@settings(max_examples=200)
def test_without_regularisation_the_answer_is_a_number_or_an_error_that_names_the_remedy(
    tasks, covariance, pairing, scale
):
    grouper = MarkovGrouper(
        n_clusters=5,
        covariance=covariance,
        pairing=pairing,
        prior_strength=0.0,
        score_resolution=0.0,
    )
    for trials in tasks:
        n_groups = grouper.n_groups
        try:
            decision = grouper.learn_one(np.clip(scale * trials, -1e6, 1e6))
        except GroupingError as error:
            message = str(error)
        else:
            assert_no_nan(decision)
            continue
        assert "score_resolution" in message
        assert grouper.n_groups == n_groups


@given(seeds)
@settings(max_examples=10)
def test_same_seed_same_result(seed):
    tasks = draw_stream(seed, n_tasks=10)
    a, b = (MarkovGrouper(n_clusters=20, seed=seed) for _ in range(2))
    assert [a.learn_one(t) for t in tasks] == [b.learn_one(t) for t in tasks]
    assert same_state(a, b, tasks[0])
