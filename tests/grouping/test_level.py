import numpy as np
import pytest
from grouping_oracle import anderson, hotelling
from scipy import stats

from trautoml import _core

N_NULLS = 3000
LEVEL = 0.05


def within_exact_interval(rejections):
    low, high = stats.binom.ppf([0.0005, 0.9995], N_NULLS, LEVEL)
    return low <= rejections <= high


@pytest.mark.parametrize(("T", "n_members"), [(8, 1), (8, 5), (16, 5)])
def test_anderson_holds_its_level_with_unequal_covariances(T, n_members):
    rng = np.random.default_rng(1)
    mix = rng.normal(size=(6, 6)) / 3
    rejections = 0
    for _ in range(N_NULLS):
        x = 0.5 + 0.01 * rng.normal(size=(T, 6)) @ mix
        y = 0.5 + 0.02 * rng.normal(size=(n_members * T, 6))
        rejections += _core.anderson_test(x, y, 0.0).p_value < LEVEL
    assert within_exact_interval(rejections)


def test_anderson_holds_its_level_when_the_roles_change():
    rng = np.random.default_rng(2)
    rejections = sum(
        _core.anderson_test(rng.normal(size=(20, 6)), 3 * rng.normal(size=(8, 6)), 0.0).p_value
        < LEVEL
        for _ in range(N_NULLS)
    )
    assert within_exact_interval(rejections)


@pytest.mark.parametrize(("T", "n_members"), [(8, 1), (16, 5)])
def test_average_holds_its_level(T, n_members):
    rng = np.random.default_rng(3)
    rejections = 0
    for _ in range(N_NULLS):
        x = 0.5 + 0.01 * rng.normal(size=(T, 6))
        y = 0.5 + 0.02 * rng.normal(size=(n_members, T, 6)).mean(axis=0)
        rejections += _core.average_test(x, y, 0.0).p_value < LEVEL
    assert within_exact_interval(rejections)


def test_without_rounding_variance_the_statistic_is_plain_hotelling():
    rng = np.random.default_rng(4)
    for T, N in ((8, 8), (8, 24), (24, 8)):
        x, y = rng.normal(size=(T, 6)), rng.normal(size=(N, 6))
        f, df = anderson(x, y, 0.0)
        got = _core.anderson_test(x, y, 0.0)
        assert got.statistic == pytest.approx(f, rel=1e-10)
        assert got.p_value == pytest.approx(stats.f.sf(f, *df), rel=1e-10)
    x, y = rng.normal(size=(2, 9, 6))
    z = x - y
    t_squared = 9 * z.mean(axis=0) @ np.linalg.solve(np.cov(z.T), z.mean(axis=0))
    assert hotelling(z, 0.0)[0] == pytest.approx((9 - 6) / (6 * 8) * t_squared)
    assert _core.average_test(x, y, 0.0).statistic == pytest.approx((9 - 6) / (6 * 8) * t_squared)
