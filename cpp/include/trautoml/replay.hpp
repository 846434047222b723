#pragma once

#include <Eigen/Core>
#include <cstdint>

#include "trautoml/markov.hpp"

namespace trautoml {

using IndexMatrix = Eigen::Matrix<std::int64_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using KindMatrix = Eigen::Matrix<std::uint8_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// One row an order, one column a position in it.
struct Replays {
    /// The group of the task at that position.
    IndexMatrix labels;
    /// `Kind` of the decision.
    KindMatrix kinds;
    /// p-value of the test; NaN where none was made.
    RowMatrix p_values;
    /// Number of groups at the end (R).
    Eigen::Matrix<std::int64_t, Eigen::Dynamic, 1> n_groups;
};

/// Predicts and commits the tasks in each order (R, N), every order from an empty state, with the
/// orders shared among `n_threads` threads. The result doesn't depend on the number of threads.
///
/// Task i is rows offsets[i] to offsets[i + 1] (exclusive) of `rows`. The first `n_clusters` rows
/// of `presets` are the clusters at the start; there must be enough of them for every doubling that
/// N tasks may ask for. Throws std::invalid_argument if an index or a shape doesn't fit, and for a
/// task that `MarkovState` refuses, with the order and the task named: that of the lowest order.
[[nodiscard]] Replays replay(const MarkovParameters& parameters, Eigen::Index n_clusters,
                             const Trials& presets, const Trials& rows,
                             const Eigen::Ref<const IndexMatrix>& offsets,
                             const Eigen::Ref<const IndexMatrix>& orders, unsigned n_threads);

}  // namespace trautoml
