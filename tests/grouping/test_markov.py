import logging
import math

import numpy as np
import pytest
from grouping_streams import draw_stream, same_state

from trautoml.errors import GroupingError
from trautoml.grouping import Decision, Grouper, MarkovGrouper, as_trials


def with_value(value, shape=(8, 6), at=(3, 2)):
    trials = np.full(shape, 0.5)
    trials[at] = value
    return trials


@pytest.mark.parametrize(
    ("trials", "expected", "remedy"),
    [
        (np.full(6, 0.5), r"shape \(T, B\).*got shape \(6,\)", "convert"),
        (np.full((2, 8, 6), 0.5), r"shape \(T, B\).*got shape \(2, 8, 6\)", "convert"),
        (0.5, r"shape \(T, B\).*got shape \(\)", "convert"),
        ([[0.5, 0.5], [0.5]], r"shape \(T, B\)", "as many trials of every probe"),
        ([["a", "b"]], r"real numbers.*dtype <U1", "convert"),
        (np.full((8, 6), 0.5j), "real numbers.*complex128", "convert"),
        (np.empty((0, 6)), r"\(T, B\).*at least one trial.*got \(0, 6\)", "measure the task"),
        (np.empty((8, 0)), r"\(T, B\).*one probe.*got \(8, 0\)", "measure the task"),
        (with_value(np.nan), r"\(T, B\).*got nan at trial 3 of probe 2", "measure that trial"),
        (with_value(np.inf), r"\(T, B\).*got inf at trial 3 of probe 2", "measure that trial"),
        (with_value(-2e6), r"at most 1e6.*got -2000000.0+ at trial 3", "rescale"),
        (np.full((6, 6), 0.5), r"\(T, B\) with T > B.*got \(6, 6\)", "more trials.*alpha=0"),
        (np.full((9, 5), 0.5), r"shape \(T, 6\), got \(9, 5\)", "same suite of probes"),
    ],
)
def test_bad_trials(trials, expected, remedy):
    grouper = MarkovGrouper()
    good = draw_stream(0, n_tasks=1)[0]
    grouper.learn_one(good)
    for call in (grouper.predict_one, grouper.learn_one, grouper.log_posterior):
        with pytest.raises(GroupingError, match=expected) as raised:
            call(trials)
        assert raised.match(remedy)
    assert grouper.labels_.tolist() == [0]


def test_too_few_trials_are_refused_from_the_first_task_on():
    with pytest.raises(GroupingError, match=r"T > B.*got \(1, 1\).*fewer probes"):
        MarkovGrouper().predict_one([[0.5]])
    assert MarkovGrouper(alpha=0.0).predict_one([[0.5]]).kind == "opened"


def test_unequal_trials_with_pairing_average():
    grouper = MarkovGrouper(pairing="average")
    grouper.learn_one(np.full((8, 6), 0.5))
    with pytest.raises(GroupingError, match=r"\(8, 6\), got \(9, 6\).*pairing='anderson'"):
        grouper.predict_one(np.full((9, 6), 0.5))
    untested = MarkovGrouper(pairing="average", alpha=0.0)
    for T in (8, 9, 1):
        untested.learn_one(np.full((T, 6), 0.5))
    assert untested.labels_.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_clusters", 0),
        ("n_clusters", 10.0),
        ("n_clusters", True),
        ("n_clusters", 10**30),
        ("gamma", -0.1),
        ("gamma", math.nan),
        ("gamma", "0.2"),
        ("alpha", 1.0),
        ("alpha", -0.1),
        ("alpha", math.nan),
        ("sigma0_sq", 0.0),
        ("sigma0_sq", 1e-101),
        ("sigma0_sq", math.inf),
        ("covariance", "full"),
        ("covariance", 3),
        ("pairing", "averaged"),
        ("pairing", None),
        ("prior_strength", -1.0),
        ("prior_strength", math.inf),
        ("score_resolution", -1e-3),
        ("score_resolution", math.nan),
        ("preset_low", 1.0),
        ("preset_low", math.nan),
        ("preset_high", math.inf),
        ("preset_high", 1e7),
        ("seed", -1),
        ("seed", None),
    ],
)
def test_bad_parameters(name, value):
    with pytest.raises(GroupingError, match=rf"expected.*{name}.*got "):
        MarkovGrouper(**{name: value})


def test_singular_matrices_name_the_remedy():
    rng = np.random.default_rng(0)
    grouper = MarkovGrouper(score_resolution=0.0, prior_strength=0.0)
    trials = rng.uniform(size=(8, 6))
    trials[:, 5] = trials[:, 0]
    with pytest.raises(GroupingError, match=r"singular.*prior_strength or score_resolution"):
        grouper.learn_one(trials)
    assert grouper.n_groups == 0
    # The density is regularised by S0, but the test is not.
    grouper = MarkovGrouper(score_resolution=0.0, gamma=5.0, sigma0_sq=0.1)
    grouper.learn_one(np.full((8, 6), 0.5))
    with pytest.raises(GroupingError, match=r"singular scatter: set score_resolution above 0"):
        grouper.learn_one(np.full((8, 6), 0.51))
    assert grouper.labels_.tolist() == [0]


def test_decisions_for_another_state_are_refused():
    tasks = draw_stream(1, n_tasks=3)
    grouper = MarkovGrouper()
    opened = grouper.learn_one(tasks[0])
    for kind, group in (("opened", 0), ("split", 2), ("joined", 1), ("joined", -1)):
        decision = Decision(kind, group, 1.0, opened.log_posterior)
        with pytest.raises(GroupingError, match=f"got group {group}: predict again"):
            grouper.learn_one(tasks[1], decision)
    assert grouper.labels_.tolist() == [0]
    override = Decision("joined", 0, 1.0, [0.0])
    assert grouper.learn_one(tasks[1], override) is override
    assert grouper.labels_.tolist() == [0, 0]


def test_longer_draw_of_presets_begins_with_the_same_rows_and_doubling_is_logged(caplog):
    grouper = MarkovGrouper(n_clusters=4, seed=5)
    short, long = grouper._presets(4, 6), grouper._presets(8, 6)
    np.testing.assert_array_equal(long[:4], short)
    rng = np.random.default_rng(2)
    with caplog.at_level(logging.INFO, logger="trautoml"):
        for _ in range(5):
            # A gap in every dimension, so that each task opens a group.
            grouper.learn_one(rng.uniform(size=6) + 1e-3 * rng.normal(size=(8, 6)))
    assert grouper.n_groups == 5
    assert grouper.n_clusters == 8
    assert caplog.messages == ["all 4 preset clusters are taken: going on with 8"]


def test_what_is_accepted_as_trials():
    base = draw_stream(3, n_tasks=1)[0].round(3)
    expected = MarkovGrouper().learn_one(base)
    wide = np.zeros((16, 12))
    wide[::2, ::2] = base
    for same in (base.tolist(), np.asfortranarray(base), wide[::2, ::2]):
        assert MarkovGrouper().learn_one(same) == expected
        assert as_trials(same).flags.c_contiguous
    MarkovGrouper().learn_one(base.astype(np.float32))
    MarkovGrouper(alpha=0.0).learn_one(np.ones((1, 3), dtype=bool))
    column = np.linspace(0, 1, 5)
    MarkovGrouper().learn_one(column[:, None])
    MarkovGrouper(alpha=0.0).learn_one(column[None, :])


def test_before_the_first_task():
    grouper = MarkovGrouper(n_clusters=7)
    assert isinstance(grouper, Grouper)
    assert (grouper.n_groups, grouper.n_clusters) == (0, 7)
    assert grouper.labels_.shape == (0,)
    assert grouper.labels_.dtype == np.int64
    assert grouper.means_.shape == (0, 0)
    trials = draw_stream(4, n_tasks=1)[0]
    nearest = ((grouper._presets(7, 6) - trials.mean(axis=0)) ** 2).sum(axis=1).argmin()
    log_posterior = grouper.log_posterior(trials)
    assert log_posterior[nearest] == 0.0
    assert (np.delete(log_posterior, nearest) == -np.inf).all()
    decision = grouper.predict_one(trials)
    assert decision == Decision("opened", 0, 1.0, np.empty(0))
    assert grouper.means_.shape == (0, 0)
    assert "0 tasks in 0 groups" in repr(grouper)


def test_labels_are_a_copy_and_trials_are_kept_apart_from_the_callers_array():
    grouper, kept = MarkovGrouper(), MarkovGrouper()
    tasks = draw_stream(5, n_tasks=4)
    for trials in tasks:
        given = trials.copy()
        grouper.learn_one(given)
        given[:] = np.nan
        kept.learn_one(trials)
    grouper.labels_[:] = 99
    rebuilt = MarkovGrouper.from_log(*grouper.__reduce__()[1])
    assert same_state(grouper, kept, tasks[0])
    assert same_state(rebuilt, kept, tasks[0])
