#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <optional>
#include <vector>

#include "trautoml/group.hpp"
#include "trautoml/mean_test.hpp"
#include "trautoml/trials.hpp"

namespace trautoml {

/// The constants of the method, with the paper's values.
struct MarkovParameters {
    /// gamma in [0, inf]: how fast the prior moves from empty clusters to groups.
    double gamma = 0.2;
    /// Level of the test in [0, 1); 0 switches the test off.
    double alpha = 0.005;
    /// S0 = sigma0_sq K^(-1/B) I is the covariance of an empty cluster. In [1e-100, 1e100].
    double sigma0_sq = 3e-4;
    Covariance covariance = Covariance::trials;
    Pairing pairing = Pairing::anderson;
    /// How many vectors the prior covariance S0 counts for in a group's. In [0, 1e100].
    double prior_strength = 1.0;
    /// The step to which scores are rounded, 1/n_validation for accuracies. In [0, 1e100].
    double score_resolution = 1e-3;

    /// Throws std::invalid_argument that names the first parameter out of its range.
    void check() const;

    /// q = score_resolution^2 / 12.
    [[nodiscard]] double rounding_variance() const {
        return score_resolution * score_resolution / 12.0;
    }
};

/// What happens to a task. The values are part of `replay`'s result.
enum class Kind : std::uint8_t { opened = 0, joined = 1, split = 2 };

/// What the state says about a task, before the task is committed.
struct Decision {
    Kind kind;
    /// The group that the task ends up in; the number of groups if it is a new one.
    Eigen::Index group;
    /// log posterior of the cluster that won.
    double log_posterior_of_winner;
    /// log posterior of each group; the remaining mass lies on the empty clusters.
    Eigen::VectorXd log_posterior;
    /// The test, and the group that was tested, if a group won and alpha > 0.
    std::optional<MeanTest> test;
    std::optional<Eigen::Index> tested_group;
};

/// The state of the sequential clustering (design section 2): K clusters, of which the non-empty
/// ones are groups. It is a fold: a function of parameters, presets and the committed tasks.
///
/// A step costs O(K B + groups B^2 + T B^2). Const members may be called from many threads at once.
class MarkovState {
  public:
    /// presets (K, B): the means of the empty clusters, K >= 1, B >= 1, all finite and at most
    /// `max_abs_score` in size. Throws std::invalid_argument otherwise.
    MarkovState(const MarkovParameters& parameters, const Trials& presets);

    /// The decision on a task. Throws std::invalid_argument if the trials matrix is not valid here
    /// (see `check_trials`; B must be that of the presets, T > B if alpha > 0, T that of the first
    /// task if moreover the pairing is `average`) and std::domain_error where a matrix is singular
    /// or every likelihood underflows.
    [[nodiscard]] Decision predict(const Trials& trials) const;

    /// log posterior of all K clusters: groups in order of creation, then the empty clusters in
    /// order of their presets. At the first task all of it lies on the nearest preset.
    /// Throws as `predict` does.
    [[nodiscard]] Eigen::VectorXd log_posterior(const Trials& trials) const;

    /// Makes the task a member of `group` (`joined`), or of a new group that takes the nearest
    /// empty cluster (`opened`, `split`; `group` is then the number of groups).
    ///
    /// `fresh` (K, B) are the means of K more clusters. They are read if the task takes the last
    /// empty cluster, as then K doubles, and every Sigma_k follows S0. Throws as `predict` does and
    /// std::invalid_argument if `group` or `fresh` doesn't fit; the state is then unchanged.
    void commit(const Trials& trials, Kind kind, Eigen::Index group, const Trials& fresh);

    /// Whether `commit` of a decision of this kind will read `fresh`.
    [[nodiscard]] bool needs_fresh(Kind kind) const {
        return kind != Kind::joined && n_empty() == 1;
    }

    [[nodiscard]] Eigen::Index n_clusters() const { return presets_.rows(); }
    [[nodiscard]] Eigen::Index n_probes() const { return presets_.cols(); }
    [[nodiscard]] Eigen::Index n_groups() const {
        return static_cast<Eigen::Index>(groups_.size());
    }
    [[nodiscard]] Eigen::Index n_empty() const { return n_clusters() - n_groups(); }
    /// The group of each committed task.
    [[nodiscard]] const std::vector<std::int64_t>& labels() const { return labels_; }
    [[nodiscard]] const std::vector<Group>& groups() const { return groups_; }
    /// Sigma_k (B, B) of a group.
    [[nodiscard]] Eigen::MatrixXd covariance(Eigen::Index group) const;

  private:
    struct EmptyClusters;
    struct Posterior;

    void check_task(const Trials& trials) const;
    [[nodiscard]] double prior_variance(Eigen::Index n_clusters) const;
    [[nodiscard]] Regularisation regularisation(Eigen::Index n_clusters) const;
    [[nodiscard]] EmptyClusters look_at_empty(const Eigen::VectorXd& x) const;
    [[nodiscard]] Posterior posterior(const Eigen::VectorXd& x) const;
    [[nodiscard]] MeanTest test(const Trials& trials, const Group& group) const;
    void open(const Trials& trials, const Trials& fresh);

    MarkovParameters parameters_;
    /// One column a probe, so that the pass over all K distances is contiguous. The row of a preset
    /// that became a group is infinite: it is then never nearest and never adds to a sum.
    Eigen::MatrixXd presets_;
    std::vector<Group> groups_;
    std::vector<std::int64_t> labels_;
    Eigen::Index first_n_trials_ = 0;
};

}  // namespace trautoml
