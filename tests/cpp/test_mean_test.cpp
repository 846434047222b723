#include <doctest/doctest.h>

#include <stdexcept>

#include "oracle.hpp"
#include "trautoml/f_distribution.hpp"
#include "trautoml/mean_test.hpp"

using trautoml::anderson_test;
using trautoml::average_test;
using trautoml::row_mean;
using trautoml::RowMatrix;

TEST_CASE("anderson against the formula, T below, at and above N") {
    std::mt19937_64 random(8);
    for (int repeat = 0; repeat < 20; ++repeat)
        for (const Eigen::Index n_probes : {1, 2, 6})
            for (const Eigen::Index t : {8, 9, 24})
                for (const Eigen::Index n : {8, 9, 40})
                    for (const double q : {0.0, 1e-6 / 12}) {
                        const RowMatrix x = oracle::normal(random, t, n_probes, 0.51, 0.02);
                        const RowMatrix y = oracle::normal(random, n, n_probes, 0.5, 0.01);
                        const auto got = anderson_test(x, y, row_mean(y), q);
                        const auto expected = oracle::anderson(x, y, q);
                        CHECK(expected.error(got.statistic) < expected.tolerance());
                        const auto pairs = static_cast<double>(std::min(t, n));
                        const auto probes = static_cast<double>(n_probes);
                        CHECK(got.log_p_value ==
                              trautoml::f_log_sf(got.statistic, probes, pairs - probes));
                        CHECK(got.p_value == std::exp(got.log_p_value));
                    }
}

TEST_CASE("average against the formula") {
    std::mt19937_64 random(9);
    for (int repeat = 0; repeat < 20; ++repeat)
        for (const int n_members : {1, 2, 5}) {
            const RowMatrix x = oracle::normal(random, 8, 6, 0.51, 0.02);
            oracle::Tasks members;
            RowMatrix y = RowMatrix::Zero(8, 6);
            for (int i = 0; i < n_members; ++i) {
                members.push_back(oracle::normal(random, 8, 6, 0.5, 0.01));
                y += members.back() / n_members;
            }
            const auto expected = oracle::average(x, members, 1e-6 / 12);
            CHECK(expected.error(average_test(x, y, 1e-6 / 12).statistic) < expected.tolerance());
        }
}

TEST_CASE("identical trials give exactly F = 0 and p = 1, even without any spread") {
    std::mt19937_64 random(10);
    const RowMatrix spread = oracle::normal(random, 8, 6, 0.5, 0.1);
    const RowMatrix constant = RowMatrix::Constant(8, 6, 0.1);
    for (const RowMatrix& x : {spread, constant})
        for (const auto& got : {anderson_test(x, x, row_mean(x), 0.0), average_test(x, x, 0.0)}) {
            CHECK(got.statistic == 0.0);
            CHECK(got.p_value == 1.0);
        }
}

TEST_CASE("what can't be tested is an error that names the remedy") {
    std::mt19937_64 random(11);
    const RowMatrix x = oracle::normal(random, 6, 6, 0.5, 0.1);
    CHECK_THROWS_WITH_AS((void)anderson_test(x, x, row_mean(x), 0.0),
                         doctest::Contains("more trials"), std::invalid_argument);
    const RowMatrix low = RowMatrix::Constant(8, 6, 0.1);
    const RowMatrix high = RowMatrix::Constant(8, 6, 0.9);
    CHECK_THROWS_WITH_AS((void)anderson_test(low, high, row_mean(high), 0.0),
                         doctest::Contains("score_resolution"), std::domain_error);
    CHECK(anderson_test(low, high, row_mean(high), 1e-7).p_value < 1e-6);
    const RowMatrix more = RowMatrix::Constant(9, 6, 0.9);
    CHECK_THROWS_WITH_AS((void)average_test(low, more, 0.0),
                         doctest::Contains("pairing='anderson'"), std::invalid_argument);
    const RowMatrix fewer = RowMatrix::Constant(8, 5, 0.9);
    CHECK_THROWS_AS((void)average_test(low, fewer, 0.0), std::invalid_argument);
}
