#include "trautoml/gaussian.hpp"

#include <cmath>
#include <stdexcept>
#include <utility>

namespace trautoml {
namespace {

constexpr double log_two_pi = 1.83787706640934548356065947281;

Cholesky factor_or_throw(const Eigen::MatrixXd& covariance) {
    auto factor = Cholesky::factor(covariance);
    if (!factor)
        throw std::domain_error(
            "expected a positive definite covariance of the group, got a singular one: its scores "
            "vary in fewer directions than there are probes; set prior_strength or "
            "score_resolution above 0");
    return *std::move(factor);
}

}  // namespace

Gaussian::Gaussian(Eigen::VectorXd mean, const Eigen::MatrixXd& covariance)
    : mean_(std::move(mean)),
      factor_(factor_or_throw(covariance)),
      log_normaliser_(
          -0.5 * (static_cast<double>(mean_.size()) * log_two_pi + factor_.log_determinant())) {}

double Gaussian::log_density(const Eigen::VectorXd& x, Eigen::Ref<Eigen::VectorXd> scratch) const {
    scratch = x - mean_;
    return log_normaliser_ - 0.5 * factor_.squared_norm(scratch);
}

}  // namespace trautoml
