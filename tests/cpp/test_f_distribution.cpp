#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "trautoml/f_distribution.hpp"

namespace {

using Real = long double;

/// Closed form for even d1: I_x(a, b) = x^a sum_(j < b) (a)_j / j! (1 - x)^j, all terms positive.
Real log_sf_even(double f, int d1, double d2) {
    const Real a = d2 / Real(2);
    const Real ratio = Real(d1) * f / d2;
    Real term = 1;
    Real sum = 0;
    for (int j = 0; j < d1 / 2; ++j) {
        sum += term;
        term *= (a + j) / (j + 1) * (ratio / (1 + ratio));
    }
    return -a * std::log1p(ratio) + std::log(sum);
}

}  // namespace

TEST_CASE("log survival function of F agrees with the closed form for even d1") {
    for (const int d1 : {2, 4, 6, 12, 32, 64})
        for (const double d2 : {1.0, 2.0, 3.0, 10.0, 99.0, 500.0, 1e4, 1e5})
            for (const double f : {1e-12, 0.01, 0.5, 0.9, 1.0, 1.1, 2.0, 7.0, 50.0, 300.0, 1e5}) {
                CAPTURE(d1);
                CAPTURE(d2);
                CAPTURE(f);
                const Real expected = log_sf_even(f, d1, d2);
                // Far below the smallest double only the relative error of the logarithm counts.
                const Real scale = std::max(Real(1), std::abs(expected) / 1000);
                CHECK(std::abs(trautoml::f_log_sf(f, d1, d2) - expected) / scale < 1e-11L);
            }
}

TEST_CASE("odd degrees of freedom: closed forms") {
    const double pi = std::acos(-1.0);
    for (const double f : {1e-6, 0.3, 1.0, 4.0, 1e3, 1e8}) {
        // F(1, 1) is the square of a Cauchy variable.
        CHECK(trautoml::f_sf(f, 1, 1) ==
              doctest::Approx(2 / pi * std::atan(1 / std::sqrt(f))).epsilon(1e-13));
        // F(1, 2) is the square of Student's t with 2 degrees of freedom.
        CHECK(1 - trautoml::f_sf(f, 1, 2) ==
              doctest::Approx(std::sqrt(f / (2 + f))).epsilon(1e-12));
    }
}

TEST_CASE("edges of F") {
    CHECK(trautoml::f_log_sf(0, 6, 2) == 0.0);
    CHECK(trautoml::f_sf(std::numeric_limits<double>::infinity(), 6, 2) == 0.0);
    CHECK(trautoml::f_sf(1e6, 6, 500) == 0.0);
    CHECK(trautoml::f_log_sf(1e6, 6, 500) == doctest::Approx(-2322.0).epsilon(0.01));
    CHECK_THROWS_AS((void)trautoml::f_sf(-1, 6, 2), std::invalid_argument);
    CHECK_THROWS_AS((void)trautoml::f_sf(std::nan(""), 6, 2), std::invalid_argument);
    CHECK_THROWS_AS((void)trautoml::f_sf(1, 0, 2), std::invalid_argument);
    CHECK_THROWS_AS((void)trautoml::f_sf(1, 6, std::numeric_limits<double>::infinity()),
                    std::invalid_argument);
}
