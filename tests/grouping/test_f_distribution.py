"""The core's F distribution against SciPy and, where SciPy itself is off, against exact sums.

SciPy 1.17 loses the digits of p near 1e-300 (for d1 = 32, d2 = 470 and f = 328.24 it gives
1.03e-298 where the exact value is 6.96e-299), so it is the reference down to 1e-250 only, and a
series of positive terms in decimal arithmetic is the reference below.
"""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy import stats

from trautoml import _core

D1 = [*range(1, 17), 23, 31, 32, 33, 48, 63, 64]
D2 = [*range(1, 33), 47, 64, 99, 100, 128, 250, 333, 499, 500, 10_000, 100_000]
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def gamma_of_half(n):
    """Gamma(n / 2) in decimal."""
    if n % 2 == 0:
        return Decimal(math.factorial(n // 2 - 1))
    k = n // 2
    return Decimal(math.factorial(2 * k)) / (4**k * math.factorial(k)) * PI.sqrt()


def exact_log_sf(f, d1, d2):
    """log I_x(a, b) = log[x^a (1-x)^b / (a B(a, b)) sum_n (a+b)_n / (a+1)_n x^n]."""
    with localcontext() as context:
        context.prec = 50
        a, b = Decimal(d2) / 2, Decimal(d1) / 2
        x = Decimal(d2) / (Decimal(d2) + d1 * Decimal(f))
        total = term = Decimal(1)
        n = 0
        while term > total * Decimal("1e-30"):
            term *= (a + b + n) / (a + 1 + n) * x
            total += term
            n += 1
        beta = gamma_of_half(d2) * gamma_of_half(d1) / gamma_of_half(d1 + d2)
        return a * x.ln() + b * (1 - x).ln() - (a * beta).ln() + total.ln()


def quantile(log_p, d1, d2):
    """The f at which the core's log p is as given."""
    low, high = 0.0, 1e300
    for _ in range(2000):
        middle = math.sqrt(low * high) if low > 0 else high * 1e-6
        if not low < middle < high or high < 1e-250:
            break
        if _core.f_log_sf(middle, d1, d2) > log_p:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("d1", D1)
def test_scipy(d1):
    f = np.concatenate([np.geomspace(1e-8, 1e8, 60), np.linspace(0.05, 4, 20)])
    for d2 in D2:
        got = np.array([_core.f_sf(v, d1, d2) for v in f])
        expected = stats.f.sf(f, d1, d2)
        trusted = expected > 1e-250
        # Older SciPy (1.15, the last for Python 3.10) is off by up to 4e-8 at the largest d2, where
        # the exact sums below are the closer check.
        rtol = 1e-10 if d2 <= 500 else 1e-7
        np.testing.assert_allclose(got[trusted], expected[trusted], rtol=rtol)


@pytest.mark.parametrize("log10_p", [-1, -10, -100, -200, -250, -299.9, -400, -1000])
def test_exact_sums_down_to_and_below_the_smallest_double(log10_p):
    for d1 in (1, 2, 3, 6, 15, 16, 33, 64):
        for d2 in (1, 2, 3, 7, 20, 99, 250, 500, 10_000, *([100_000] if d1 == 6 else [])):
            if log10_p * -2 / d2 > 280:  # f itself would overflow
                continue
            f = quantile(log10_p * math.log(10), d1, d2)
            got, expected = _core.f_log_sf(f, d1, d2), exact_log_sf(f, d1, d2)
            assert abs(float(Decimal(got) - expected)) < 1e-10
            if log10_p > -300:
                assert _core.f_sf(f, d1, d2) == pytest.approx(float(expected.exp()), rel=1e-10)


def test_edges():
    assert _core.f_sf(0.0, 6, 2) == 1.0
    assert _core.f_sf(math.inf, 6, 2) == 0.0
    assert _core.f_log_sf(math.inf, 6, 2) == -math.inf
    for bad in ((-1.0, 6, 2), (math.nan, 6, 2), (1.0, 0, 2), (1.0, 6, math.inf)):
        with pytest.raises(ValueError, match="degrees of freedom above 0"):
            _core.f_sf(*bad)
