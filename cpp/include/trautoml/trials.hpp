#pragma once

#include <Eigen/Core>

namespace trautoml {

/// Row-major, as numpy lays it out: one trial vector of B scores is contiguous.
using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A view of a trials matrix (T, B): the score of trial t of probe b.
using Trials = Eigen::Ref<const RowMatrix>;

/// Largest score that is accepted: squares and sums of squares of larger ones could overflow.
inline constexpr double max_abs_score = 1e6;

/// Checks that T >= 1, B >= 1 and that every score is finite and at most `max_abs_score` in size.
/// Throws std::invalid_argument that names the first offending trial and probe (both from 0).
void check_trials(const Trials& trials);

/// The mean of the rows (B). It is exact where all rows are equal.
[[nodiscard]] Eigen::VectorXd row_mean(const Trials& trials);

}  // namespace trautoml
