"""Streams of synthetic tasks for the tests."""

import numpy as np


def draw_stream(seed, *, n_tasks=25, B=6, T=(8,), n_kinds=4, sd=0.01):
    """Tasks of a few kinds, T taken in turn; some are moved a little, so that tests refuse."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.1, 0.9, size=(n_kinds, B))
    tasks = []
    for i in range(n_tasks):
        spread = sd * rng.uniform(0.3, 1.5, size=B)
        trials = centres[rng.integers(n_kinds)] + spread * rng.normal(size=(T[i % len(T)], B))
        tasks.append(trials + (1.5 * sd if rng.random() < 0.25 else 0.0))
    return tasks


def same_state(a, b, probe):
    """Whether two groupers are equal bit by bit, in what they hold and in what they say."""
    return (
        a.params == b.params
        and a.n_clusters == b.n_clusters
        and np.array_equal(a.labels_, b.labels_)
        and np.array_equal(a.means_, b.means_)
        and np.array_equal(a.covariances_, b.covariances_)
        and np.array_equal(a.log_posterior(probe), b.log_posterior(probe))
        and a.predict_one(probe) == b.predict_one(probe)
    )
