#include "trautoml/trials.hpp"

#include <cmath>
#include <stdexcept>
#include <string>

namespace trautoml {

void check_trials(const Trials& trials) {
    if (trials.rows() < 1 || trials.cols() < 1)
        throw std::invalid_argument(
            "expected a trials matrix of shape (T, B) with at least one trial and one probe, got "
            "(" +
            std::to_string(trials.rows()) + ", " + std::to_string(trials.cols()) +
            "): measure the task at least once with every probe");
    for (Eigen::Index t = 0; t < trials.rows(); ++t)
        for (Eigen::Index b = 0; b < trials.cols(); ++b)
            if (!(std::abs(trials(t, b)) <= max_abs_score))
                throw std::invalid_argument(
                    "expected a trials matrix of shape (T, B) of finite scores of at most 1e6 in "
                    "size, got " +
                    std::to_string(trials(t, b)) + " at trial " + std::to_string(t) + " of probe " +
                    std::to_string(b) +
                    " (from 0): measure that trial again, score a failed one at chance level, or "
                    "rescale the scores");
}

Eigen::VectorXd row_mean(const Trials& trials) {
    // Differences from the first row: equal rows then give exactly that row, which the test of
    // identical tasks relies on.
    const Eigen::RowVectorXd first = trials.row(0);
    return (first + (trials.rowwise() - first).colwise().mean()).transpose();
}

}  // namespace trautoml
