#pragma once

#include <Eigen/Core>

#include "trautoml/cholesky.hpp"

namespace trautoml {

/// A multivariate normal density N(mean, covariance) whose covariance is factored once, here.
class Gaussian {
  public:
    /// mean (B), covariance (B, B) symmetric. Throws std::domain_error if the covariance is
    /// singular to working precision; the message names the parameters that prevent it.
    Gaussian(Eigen::VectorXd mean, const Eigen::MatrixXd& covariance);

    /// log N(x; mean, covariance) for x (B). `scratch` (B) is overwritten: a caller that loops over
    /// many densities passes the same one, so that the loop doesn't allocate.
    [[nodiscard]] double log_density(const Eigen::VectorXd& x,
                                     Eigen::Ref<Eigen::VectorXd> scratch) const;

  private:
    Eigen::VectorXd mean_;
    Cholesky factor_;
    double log_normaliser_;
};

}  // namespace trautoml
