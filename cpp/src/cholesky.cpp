#include "trautoml/cholesky.hpp"

#include <Eigen/Cholesky>
#include <limits>

namespace trautoml {

std::optional<Cholesky> Cholesky::factor(Eigen::MatrixXd matrix) {
    const Eigen::VectorXd variances = matrix.diagonal();
    if (!matrix.allFinite()) return std::nullopt;
    const Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>> factored(matrix);
    if (factored.info() != Eigen::Success) return std::nullopt;
    // A singular matrix in floating point often passes with a pivot that is a rounding error.
    const double rounding =
        16.0 * static_cast<double>(matrix.rows()) * std::numeric_limits<double>::epsilon();
    if (!(matrix.diagonal().array().square() > rounding * variances.array()).all())
        return std::nullopt;
    return Cholesky(std::move(matrix));
}

double Cholesky::log_determinant() const { return 2.0 * lower_.diagonal().array().log().sum(); }

double Cholesky::squared_norm(Eigen::Ref<Eigen::VectorXd> v) const {
    lower_.triangularView<Eigen::Lower>().solveInPlace(v);
    return v.squaredNorm();
}

}  // namespace trautoml
