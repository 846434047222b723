#include <doctest/doctest.h>

#include <stdexcept>

#include "oracle.hpp"
#include "trautoml/gaussian.hpp"

TEST_CASE("log density against explicit inverse and determinant") {
    std::mt19937_64 random(4);
    for (int repeat = 0; repeat < 50; ++repeat)
        for (const Eigen::Index n : {1, 2, 6, 12}) {
            const trautoml::RowMatrix rows = oracle::normal(random, 3 * n, n, 0.0, 0.02);
            const Eigen::MatrixXd sigma = rows.transpose() * rows;
            const Eigen::VectorXd centre = oracle::normal(random, n, 1, 0.5, 0.2);
            const Eigen::VectorXd x = oracle::normal(random, n, 1, 0.5, 0.2);
            Eigen::VectorXd scratch(n);
            const double got = trautoml::Gaussian(centre, sigma).log_density(x, scratch);
            const oracle::Real expected = oracle::log_density(
                x.cast<oracle::Real>(), centre.cast<oracle::Real>(), sigma.cast<oracle::Real>());
            CHECK(oracle::error(got, expected) < 1e-12);
        }
}

TEST_CASE("a singular covariance names both remedies") {
    const Eigen::MatrixXd ones = Eigen::MatrixXd::Ones(3, 3);
    CHECK_THROWS_WITH_AS(trautoml::Gaussian(Eigen::VectorXd::Zero(3), ones),
                         doctest::Contains("prior_strength or score_resolution"),
                         std::domain_error);
}
