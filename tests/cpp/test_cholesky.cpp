#include <doctest/doctest.h>

#include "oracle.hpp"
#include "trautoml/cholesky.hpp"

using trautoml::Cholesky;

TEST_CASE("factor against explicit inverse and determinant") {
    std::mt19937_64 random(2);
    for (const Eigen::Index n : {1, 2, 6, 20}) {
        const trautoml::RowMatrix rows = oracle::normal(random, 3 * n, n, 0.0, 0.1);
        const Eigen::MatrixXd matrix = rows.transpose() * rows;
        const oracle::Matrix exact = matrix.cast<oracle::Real>();
        Eigen::VectorXd v = oracle::normal(random, n, 1, 0.0, 1.0);
        const oracle::Vector w = v.cast<oracle::Real>();
        const auto factor = Cholesky::factor(matrix);
        REQUIRE(factor);
        CHECK(oracle::error(factor->log_determinant(), std::log(exact.determinant())) < 1e-12);
        const oracle::Real norm = w.dot(exact.inverse() * w);
        CHECK(oracle::error(factor->squared_norm(v) / static_cast<double>(norm), 1) < 1e-12);
    }
}

TEST_CASE("singular to working precision is seen, whatever the scale") {
    std::mt19937_64 random(3);
    // In some draws the last pivot comes out as a positive rounding error.
    for (int repeat = 0; repeat < 50; ++repeat)
        for (const double scale : {1e-12, 1.0, 1e6}) {
            trautoml::RowMatrix rows = oracle::normal(random, 9, 4, 0.0, scale);
            CHECK(Cholesky::factor(rows.transpose() * rows));
            rows.col(3) = rows.col(0) - 0.3 * rows.col(1);
            CHECK_FALSE(Cholesky::factor(rows.transpose() * rows));
            rows.col(3).setZero();
            CHECK_FALSE(Cholesky::factor(rows.transpose() * rows));
        }
    CHECK_FALSE(Cholesky::factor(Eigen::MatrixXd::Constant(2, 2, std::nan(""))));
    CHECK_FALSE(Cholesky::factor(-Eigen::MatrixXd::Identity(2, 2)));
}
