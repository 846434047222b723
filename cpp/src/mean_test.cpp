#include "trautoml/mean_test.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

#include "trautoml/cholesky.hpp"
#include "trautoml/f_distribution.hpp"

namespace trautoml {
namespace {

MeanTest hotelling(RowMatrix z, double rounding_variance) {
    const Eigen::Index n = z.rows();
    const Eigen::Index n_probes = z.cols();
    if (n <= n_probes)
        throw std::invalid_argument(
            "expected more trials than probes on both sides of the test, got " + std::to_string(n) +
            " trials of " + std::to_string(n_probes) +
            " probes: measure more trials, use fewer probes, or set alpha=0 to go without the "
            "test");
    Eigen::VectorXd mean = row_mean(z);
    if ((mean.array() == 0.0).all()) return {0.0, 0.0, 1.0};

    z.rowwise() -= mean.transpose();
    const auto pairs = static_cast<double>(n);
    const auto probes = static_cast<double>(n_probes);
    Eigen::MatrixXd scatter(n_probes, n_probes);
    scatter.noalias() = z.transpose() * z;
    scatter.diagonal().array() += pairs * rounding_variance;
    const auto factor = Cholesky::factor(std::move(scatter));
    if (!factor)
        throw std::domain_error(
            "expected differences between the task's and the group's trials that vary in all " +
            std::to_string(n_probes) +
            " directions, got a singular scatter: set score_resolution above 0 (1/n_validation for "
            "accuracies), drop duplicated probes, or set alpha=0 to go without the test");
    const double f = pairs * (pairs - probes) / probes * factor->squared_norm(mean);
    if (!std::isfinite(f))
        throw std::domain_error(
            "expected a finite test statistic, got an overflow: set score_resolution above 0 or "
            "rescale the scores");
    const double log_p = f_log_sf(f, probes, pairs - probes);
    return {f, log_p, std::exp(log_p)};
}

/// Anderson's pairs; `few` has at most as many rows as `many`.
RowMatrix anderson_pairs(const Trials& few, const Trials& many, const Eigen::VectorXd& many_mean) {
    const Eigen::Index n = few.rows();
    const double a = std::sqrt(static_cast<double>(n) / static_cast<double>(many.rows()));
    // With equal numbers both means are one and the same number, so that identical trials give
    // differences of exactly 0.
    const Eigen::VectorXd head_mean = n == many.rows() ? many_mean : row_mean(many.topRows(n));
    return (few.rowwise() - many_mean.transpose()) -
           a * (many.topRows(n).rowwise() - head_mean.transpose());
}

void check_columns(const Trials& x, const Trials& y) {
    if (x.cols() != y.cols())
        throw std::invalid_argument("expected the same probes on both sides of the test, got " +
                                    std::to_string(x.cols()) + " and " + std::to_string(y.cols()));
}

}  // namespace

MeanTest anderson_test(const Trials& x, const Trials& y, const Eigen::VectorXd& y_mean,
                       double rounding_variance) {
    check_columns(x, y);
    return hotelling(
        x.rows() <= y.rows() ? anderson_pairs(x, y, y_mean) : anderson_pairs(y, x, row_mean(x)),
        rounding_variance);
}

MeanTest average_test(const Trials& x, const Trials& y, double rounding_variance) {
    check_columns(x, y);
    if (x.rows() != y.rows())
        throw std::invalid_argument(
            "expected " + std::to_string(y.rows()) + " trials, as the group's members have, got " +
            std::to_string(x.rows()) + ": use pairing='anderson', which takes any number");
    return hotelling(x - y, rounding_variance);
}

}  // namespace trautoml
