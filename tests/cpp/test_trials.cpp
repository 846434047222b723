#include <doctest/doctest.h>

#include <limits>
#include <stdexcept>

#include "oracle.hpp"
#include "trautoml/trials.hpp"

using trautoml::RowMatrix;

TEST_CASE("row_mean agrees with a loop and is exact for equal rows") {
    std::mt19937_64 random(1);
    for (const Eigen::Index n : {1, 2, 7, 100}) {
        const RowMatrix rows = oracle::normal(random, n, 5, 0.5, 0.1);
        CHECK(oracle::error_of(trautoml::row_mean(rows), oracle::mean(rows)) < 1e-15);
        const RowMatrix equal = rows.row(0).replicate(n, 1);
        CHECK((trautoml::row_mean(equal).transpose().array() == rows.row(0).array()).all());
    }
}

TEST_CASE("check_trials names the first offending score") {
    RowMatrix trials = RowMatrix::Constant(8, 6, 0.5);
    CHECK_NOTHROW(trautoml::check_trials(trials));
    for (const double bad : {std::numeric_limits<double>::quiet_NaN(),
                             std::numeric_limits<double>::infinity(), -1.1e6}) {
        trials(3, 2) = bad;
        CHECK_THROWS_WITH_AS(trautoml::check_trials(trials),
                             doctest::Contains("at trial 3 of probe 2"), std::invalid_argument);
    }
    CHECK_THROWS_WITH_AS(trautoml::check_trials(RowMatrix(0, 6)), doctest::Contains("got (0, 6)"),
                         std::invalid_argument);
    CHECK_THROWS_AS(trautoml::check_trials(RowMatrix(8, 0)), std::invalid_argument);
}
