#include "trautoml/markov.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace trautoml {
namespace {

constexpr double two_pi = 6.28318530717958647692528676656;
constexpr double infinity = std::numeric_limits<double>::infinity();

std::string shape(const Trials& matrix) {
    return "(" + std::to_string(matrix.rows()) + ", " + std::to_string(matrix.cols()) + ")";
}

void check_range(bool valid, const char* name, const char* expected, double value) {
    if (valid) return;
    std::ostringstream message;
    message << "expected " << name << ' ' << expected << ", got " << value;
    throw std::invalid_argument(message.str());
}

}  // namespace

void MarkovParameters::check() const {
    check_range(gamma >= 0.0, "gamma", "of at least 0 (inf is allowed)", gamma);
    check_range(alpha >= 0.0 && alpha < 1.0, "alpha", "in [0, 1), where 0 switches the test off",
                alpha);
    // The bounds keep quotients of squared distances and variances from overflowing.
    check_range(sigma0_sq >= 1e-100 && sigma0_sq <= 1e100, "sigma0_sq", "in [1e-100, 1e100]",
                sigma0_sq);
    check_range(prior_strength >= 0.0 && prior_strength <= 1e100, "prior_strength", "in [0, 1e100]",
                prior_strength);
    check_range(score_resolution >= 0.0 && score_resolution <= 1e100, "score_resolution",
                "in [0, 1e100]", score_resolution);
}

/// What one pass over the empty clusters finds.
struct MarkovState::EmptyClusters {
    Eigen::Index nearest = -1;
    /// Squared distance from the task to the nearest.
    double distance_sq = infinity;
    /// Sum over them of the likelihood relative to the nearest one's.
    double relative_sum = 0.0;
};

/// Joint log probabilities (prior times likelihood), and what normalises them.
struct MarkovState::Posterior {
    Eigen::VectorXd log_joint;
    /// Of the nearest empty cluster.
    double log_joint_empty;
    double log_total;
};

MarkovState::MarkovState(const MarkovParameters& parameters, const Trials& presets)
    : parameters_(parameters), presets_(presets) {
    parameters_.check();
    if (presets_.rows() < 1 || presets_.cols() < 1 ||
        !(presets_.array().abs() <= max_abs_score).all())
        throw std::invalid_argument(
            "expected presets of shape (K, B), finite and of at most 1e6 in size, got shape " +
            shape(presets));
}

void MarkovState::check_task(const Trials& trials) const {
    check_trials(trials);
    if (trials.cols() != n_probes())
        throw std::invalid_argument("expected a trials matrix of shape (T, " +
                                    std::to_string(n_probes()) + "), got " + shape(trials) +
                                    ": measure every task with the same suite of probes");
    if (parameters_.alpha == 0.0) return;
    if (trials.rows() <= n_probes())
        throw std::invalid_argument(
            "expected a trials matrix of shape (T, B) with T > B, as the test has no F "
            "distribution "
            "otherwise, got " +
            shape(trials) +
            ": measure more trials, use fewer probes, or set alpha=0 to go without the test");
    if (parameters_.pairing == Pairing::average && first_n_trials_ != 0 &&
        trials.rows() != first_n_trials_)
        throw std::invalid_argument(
            "expected a trials matrix of shape (" + std::to_string(first_n_trials_) + ", " +
            std::to_string(n_probes()) + "), got " + shape(trials) +
            ": pairing='average' needs as many trials of every task; use pairing='anderson'");
}

double MarkovState::prior_variance(Eigen::Index n_clusters) const {
    return parameters_.sigma0_sq *
           std::pow(static_cast<double>(n_clusters), -1.0 / static_cast<double>(n_probes()));
}

Regularisation MarkovState::regularisation(Eigen::Index n_clusters) const {
    return {parameters_.prior_strength, prior_variance(n_clusters),
            parameters_.rounding_variance()};
}

MarkovState::EmptyClusters MarkovState::look_at_empty(const Eigen::VectorXd& x) const {
    // Empty clusters share an isotropic covariance, so squared distances say all. Blocks stay in
    // the nearest cache between the passes over the probes, and no buffer of K numbers is needed.
    constexpr Eigen::Index block = 128;
    const double scale = 0.5 / prior_variance(n_clusters());
    Eigen::Array<double, block, 1> buffer;
    EmptyClusters found;
    for (Eigen::Index start = 0; start < n_clusters(); start += block) {
        auto distances = buffer.head(std::min(block, n_clusters() - start));
        distances = (presets_.col(0).segment(start, distances.size()).array() - x(0)).square();
        for (Eigen::Index b = 1; b < n_probes(); ++b)
            distances += (presets_.col(b).segment(start, distances.size()).array() - x(b)).square();
        const double smallest = distances.minCoeff();
        if (smallest < found.distance_sq) {
            found.relative_sum *= std::exp((smallest - found.distance_sq) * scale);
            found.distance_sq = smallest;
            const double* begin = buffer.data();
            found.nearest = start + (std::find(begin, begin + distances.size(), smallest) - begin);
        }
        // Most blocks hold only clusters of which a billion don't move the sum's last digit.
        constexpr double negligible = 60.0;
        if ((smallest - found.distance_sq) * scale < negligible)
            found.relative_sum += ((found.distance_sq - distances) * scale).exp().sum();
    }
    return found;
}

MarkovState::Posterior MarkovState::posterior(const Eigen::VectorXd& x) const {
    const EmptyClusters empty = look_at_empty(x);
    const double variance = prior_variance(n_clusters());
    // w = 1 - exp(-rate); both of its logarithms are taken without cancellation.
    const double rate = static_cast<double>(n_groups()) * parameters_.gamma;
    const double log_w = std::log(-std::expm1(-rate));
    const double log_n = std::log(static_cast<double>(labels_.size()));

    Posterior result;
    result.log_joint.resize(n_groups());
    Eigen::VectorXd scratch(n_probes());
    for (Eigen::Index k = 0; k < n_groups(); ++k) {
        const Group& group = groups_[static_cast<std::size_t>(k)];
        result.log_joint(k) = log_w +
                              std::log(static_cast<double>(group.statistics().n_members())) -
                              log_n + group.density().log_density(x, scratch);
    }
    result.log_joint_empty = -rate - std::log(static_cast<double>(n_empty())) -
                             0.5 * static_cast<double>(n_probes()) * std::log(two_pi * variance) -
                             0.5 * empty.distance_sq / variance;

    const double largest = std::max(result.log_joint.maxCoeff(), result.log_joint_empty);
    result.log_total =
        largest + std::log((result.log_joint.array() - largest).exp().sum() +
                           std::exp(result.log_joint_empty - largest) * empty.relative_sum);
    if (!std::isfinite(result.log_total))
        throw std::domain_error(
            "expected a cluster with a likelihood that is a number, got none: the scores lie too "
            "far from every cluster for their covariances; set score_resolution or prior_strength "
            "above 0");
    return result;
}

MeanTest MarkovState::test(const Trials& trials, const Group& group) const {
    if (parameters_.pairing == Pairing::average)
        return average_test(trials, group.trial_means(), parameters_.rounding_variance());
    return anderson_test(trials, group.rows(), group.statistics().mean_of_rows(),
                         parameters_.rounding_variance());
}

Decision MarkovState::predict(const Trials& trials) const {
    check_task(trials);
    if (groups_.empty()) return {Kind::opened, 0, 0.0, Eigen::VectorXd(0), {}, {}};

    const Posterior found = posterior(row_mean(trials));
    Eigen::Index best = 0;
    const double best_log_joint = found.log_joint.maxCoeff(&best);
    Decision decision{Kind::opened, n_groups(), 0.0, {}, {}, {}};
    // Rounding may lift the log of a probability of 1 above 0.
    decision.log_posterior_of_winner =
        std::min(0.0, std::max(best_log_joint, found.log_joint_empty) - found.log_total);
    decision.log_posterior = (found.log_joint.array() - found.log_total).min(0.0);
    if (best_log_joint < found.log_joint_empty) return decision;

    decision.kind = Kind::joined;
    decision.group = best;
    if (parameters_.alpha > 0.0) {
        decision.test = test(trials, groups_[static_cast<std::size_t>(best)]);
        decision.tested_group = best;
        if (decision.test->p_value < parameters_.alpha) {
            decision.kind = Kind::split;
            decision.group = n_groups();
        }
    }
    return decision;
}

Eigen::VectorXd MarkovState::log_posterior(const Trials& trials) const {
    check_task(trials);
    const Eigen::VectorXd x = row_mean(trials);
    Eigen::VectorXd result(n_clusters());
    if (groups_.empty()) {
        result.setConstant(-infinity);
        result(look_at_empty(x).nearest) = 0.0;
        return result;
    }
    const Posterior found = posterior(x);
    result.head(n_groups()) = found.log_joint.array() - found.log_total;
    const double variance = prior_variance(n_clusters());
    const double nearest_sq = look_at_empty(x).distance_sq;
    Eigen::Index next = n_groups();
    for (Eigen::Index k = 0; k < n_clusters(); ++k) {
        if (std::isinf(presets_(k, 0))) continue;
        const double distance_sq = (presets_.row(k).transpose() - x).squaredNorm();
        result(next++) =
            found.log_joint_empty - found.log_total - 0.5 * (distance_sq - nearest_sq) / variance;
    }
    return result.array().min(0.0);
}

void MarkovState::commit(const Trials& trials, Kind kind, Eigen::Index group, const Trials& fresh) {
    check_task(trials);
    const bool joins = kind == Kind::joined;
    if (joins ? group < 0 || group >= n_groups() : group != n_groups())
        throw std::invalid_argument(
            "expected a decision made for this state of " + std::to_string(n_groups()) +
            " groups (joined: one of them, opened or split: the next number), got group " +
            std::to_string(group) + ": predict again");
    if (labels_.size() == labels_.capacity()) labels_.reserve(2 * labels_.size() + 1);
    if (joins)
        groups_[static_cast<std::size_t>(group)].add(trials, parameters_.covariance,
                                                     regularisation(n_clusters()));
    else
        open(trials, fresh);
    labels_.push_back(group);
    if (first_n_trials_ == 0) first_n_trials_ = trials.rows();
}

void MarkovState::open(const Trials& trials, const Trials& fresh) {
    const Eigen::Index old_clusters = n_clusters();
    const Eigen::Index nearest = look_at_empty(row_mean(trials)).nearest;
    const bool doubles = n_empty() == 1;
    if (doubles && (fresh.rows() != old_clusters || fresh.cols() != n_probes() ||
                    !(fresh.array().abs() <= max_abs_score).all()))
        throw std::invalid_argument(
            "expected " + std::to_string(old_clusters) +
            " fresh presets, finite and of at most 1e6 in size, as the last "
            "empty cluster is taken, got shape " +
            shape(fresh));

    // All that can fail comes before the first change.
    const Regularisation prior = regularisation(doubles ? 2 * old_clusters : old_clusters);
    Group opened(trials, parameters_.covariance, prior);
    std::vector<Gaussian> densities;
    Eigen::MatrixXd presets;
    if (doubles) {
        densities.reserve(groups_.size());
        for (const Group& group : groups_)
            densities.push_back(group.density(parameters_.covariance, prior));
        presets.resize(2 * old_clusters, n_probes());
        presets << presets_, fresh;
    }
    groups_.push_back(std::move(opened));

    if (doubles) {
        for (std::size_t k = 0; k < densities.size(); ++k)
            groups_[k].set_density(std::move(densities[k]));
        presets_.swap(presets);
    }
    presets_.row(nearest).setConstant(infinity);
}

Eigen::MatrixXd MarkovState::covariance(Eigen::Index group) const {
    return groups_.at(static_cast<std::size_t>(group))
        .statistics()
        .covariance(parameters_.covariance, regularisation(n_clusters()));
}

}  // namespace trautoml
