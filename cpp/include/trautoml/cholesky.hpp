#pragma once

#include <Eigen/Core>
#include <optional>

namespace trautoml {

/// The lower Cholesky factor L of a symmetric positive definite matrix A = L L' (B, B).
class Cholesky {
  public:
    /// Factors A, of which only the lower triangle is read. Empty if A is not finite or is singular
    /// to working precision: a variance of which all but a rounding error is explained by the
    /// variables before it counts as zero.
    [[nodiscard]] static std::optional<Cholesky> factor(Eigen::MatrixXd matrix);

    /// log det A.
    [[nodiscard]] double log_determinant() const;

    /// v' A^-1 v for v (B), which is overwritten with L^-1 v. Does not allocate.
    [[nodiscard]] double squared_norm(Eigen::Ref<Eigen::VectorXd> v) const;

  private:
    explicit Cholesky(Eigen::MatrixXd lower) : lower_(std::move(lower)) {}

    Eigen::MatrixXd lower_;
};

}  // namespace trautoml
