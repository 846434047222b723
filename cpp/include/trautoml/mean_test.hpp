#pragma once

#include "trautoml/trials.hpp"

namespace trautoml {

/// How a task's trials are paired with a group's (design section 2).
enum class Pairing {
    /// Anderson's reduction of the Behrens-Fisher problem, for any two numbers of trials.
    anderson,
    /// The t-th trial against the mean over members of their t-th trial; needs equal T.
    average,
};

/// The outcome of a test that two means are equal.
struct MeanTest {
    /// F, distributed as F(B, n - B) under the null hypothesis with n pairs.
    double statistic;
    double log_p_value;
    /// exp(log_p_value); 0 where that underflows.
    double p_value;
};

/// Hotelling's test that the rows of X (T, B) and of Y (N, B) have the same mean, by Anderson's
/// pairs: F = n (n - B) / B zbar' [sum_i (z_i - zbar)(z_i - zbar)' + n q I]^-1 zbar with
/// z_i = x_i - a y_i + a mean(y_1..y_T) - mean(y_1..y_N), a = sqrt(T / N) and n = T. If T > N, X
/// and Y change roles. Row order matters: Y is in order of arrival.
///
/// y_mean (B) is mean(y_1..y_N). rounding_variance is q. If zbar is exactly 0, F = 0 and p = 1.
/// Throws std::invalid_argument unless n > B, and std::domain_error if the scatter is singular to
/// working precision, which a q above 0 prevents.
[[nodiscard]] MeanTest anderson_test(const Trials& x, const Trials& y,
                                     const Eigen::VectorXd& y_mean, double rounding_variance);

/// The same test of z_i = x_i - y_i for X and Y (T, B), where y_t is the mean over members of their
/// t-th trial. Throws as `anderson_test` does, and std::invalid_argument if the shapes differ.
[[nodiscard]] MeanTest average_test(const Trials& x, const Trials& y, double rounding_variance);

}  // namespace trautoml
