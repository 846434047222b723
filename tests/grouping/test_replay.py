import threading
import time

import numpy as np
import pytest
from grouping_streams import draw_stream

from trautoml.errors import GroupingError
from trautoml.grouping import KINDS, MarkovGrouper, replay


def live(tasks, order, **params):
    grouper = MarkovGrouper(**params)
    decisions = [grouper.learn_one(tasks[i]) for i in order]
    return grouper, decisions


@pytest.mark.parametrize("n_threads", [1, 2, 7, None])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_clusters": 1, "seed": 3},
        {"covariance": "paper", "pairing": "average"},
        {"alpha": 0.0, "gamma": 1.0},
    ],
)
def test_replay_equals_live_streams(params, n_threads):
    tasks = draw_stream(21, n_tasks=18)
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(18)[:15] for _ in range(6)])
    got = replay(tasks, orders, n_threads=n_threads, **params)
    assert got.labels.dtype == np.int64
    assert got.kinds.dtype == np.uint8
    for r, order in enumerate(orders):
        grouper, decisions = live(tasks, order, **params)
        np.testing.assert_array_equal(got.labels[r], grouper.labels_)
        assert [KINDS[k] for k in got.kinds[r]] == [d.kind for d in decisions]
        expected = [np.nan if d.p_value is None else d.p_value for d in decisions]
        np.testing.assert_array_equal(got.p_values[r], expected)
        assert got.n_groups[r] == grouper.n_groups


def test_tasks_with_unequal_numbers_of_trials():
    tasks = draw_stream(22, n_tasks=12, B=2, T=(4, 9, 5))
    got = replay(tasks, [range(12), range(11, -1, -1)], n_clusters=2)
    np.testing.assert_array_equal(got.labels[0], live(tasks, range(12), n_clusters=2)[0].labels_)


def test_other_python_threads_run_meanwhile():
    tasks = draw_stream(23, n_tasks=200, n_kinds=40)
    orders = [np.random.default_rng(i).permutation(200) for i in range(40)]
    thread = threading.Thread(target=replay, args=(tasks, orders), kwargs={"n_threads": 1})
    ticks = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.002)
        ticks += 1
    assert ticks > 10


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([0, 1, 2], r"shape \(R, N\).*got shape \(3,\)"),
        ([[0.0, 1.0]], "integers.*dtype float64"),
        ([[0, 1], [2, 2]], "distinct task numbers from 0 to 4, got row 1"),
        ([[0, 5]], "from 0 to 4, got row 0"),
        ([[0, -1]], "from 0 to 4, got row 0"),
    ],
)
def test_bad_orders(orders, message):
    with pytest.raises(GroupingError, match=message):
        replay(draw_stream(24, n_tasks=5), orders)


def test_bad_tasks_and_threads():
    tasks = draw_stream(25, n_tasks=3)
    with pytest.raises(GroupingError, match="at least one task"):
        replay([], [[0]])
    with pytest.raises(GroupingError, match=r"task 1: expected.*\(T, 6\).*\(8, 5\)"):
        replay([tasks[0], tasks[1][:, :5]], [[0, 1]])
    tasks[2][4, 1] = np.nan
    with pytest.raises(GroupingError, match=r"task 2: .*trial 4 of probe 1"):
        replay(tasks, [[0, 1]])
    with pytest.raises(GroupingError, match="n_threads"):
        replay(tasks[:2], [[0, 1]], n_threads=0)
    # Raised in a thread.
    with pytest.raises(GroupingError, match=r"order 0, task 1: .*T > B"):
        replay([tasks[0], tasks[1][:6]], [[0, 1], [1, 0]], n_threads=2)


def test_no_orders():
    got = replay(draw_stream(26, n_tasks=3), np.empty((0, 3), dtype=np.int64))
    assert got.labels.shape == (0, 3)
