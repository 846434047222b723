#pragma once

#include <Eigen/Core>
#include <vector>

#include "trautoml/gaussian.hpp"
#include "trautoml/trials.hpp"

namespace trautoml {

/// Which covariance S_k describes a group (design section 2).
enum class Covariance {
    /// Of all members' trial vectors about the group's mean.
    trials,
    /// The paper's: Eq. 14 (within the task) for one member, Eq. 13 (members' means) for more.
    paper,
};

/// How a group's covariance becomes Sigma_k = (m S_k + s S0) / (m + s) + q I.
struct Regularisation {
    /// s, in vectors: the weight of S0.
    double prior_strength;
    /// The variance on the diagonal of S0.
    double prior_variance;
    /// q, the variance of rounding a score.
    double rounding_variance;
};

/// Means and scatters of a group, updated a task at a time in O(T B^2) by Welford's and Chan's
/// recurrences, which don't cancel as sums of squares do.
class GroupStatistics {
  public:
    /// Of a group without members, for B probes.
    explicit GroupStatistics(Eigen::Index n_probes);

    /// Takes in the trials (T, B) of one more member.
    void add(const Trials& trials);

    /// |V_k|.
    [[nodiscard]] Eigen::Index n_members() const { return n_members_; }
    /// N, the number of the members' trial vectors.
    [[nodiscard]] Eigen::Index n_rows() const { return n_rows_; }
    /// mu_k (B), the mean of the members' means.
    [[nodiscard]] const Eigen::VectorXd& mean() const { return mean_; }
    /// The mean (B) of all trial vectors; it differs from mu_k if members differ in T.
    [[nodiscard]] const Eigen::VectorXd& mean_of_rows() const { return mean_of_rows_; }
    /// Sigma_k (B, B). Needs at least one member.
    [[nodiscard]] Eigen::MatrixXd covariance(Covariance kind,
                                             const Regularisation& regularisation) const;

  private:
    Eigen::Index n_members_ = 0;
    Eigen::Index n_rows_ = 0;
    Eigen::VectorXd mean_;
    Eigen::VectorXd mean_of_rows_;
    Eigen::MatrixXd scatter_of_rows_;
    Eigen::MatrixXd scatter_of_means_;
};

/// A cluster that has members: its statistics, its density, and the trials that the test reads.
class Group {
  public:
    /// A group of one member. Throws what `Gaussian` throws.
    Group(const Trials& trials, Covariance kind, const Regularisation& regularisation);

    /// Makes a task a member. Throws what `Gaussian` throws, and the group is then unchanged.
    void add(const Trials& trials, Covariance kind, const Regularisation& regularisation);

    /// The density that the group would have under another regularisation.
    [[nodiscard]] Gaussian density(Covariance kind, const Regularisation& regularisation) const;
    void set_density(Gaussian density) { density_ = std::move(density); }

    [[nodiscard]] const GroupStatistics& statistics() const { return statistics_; }
    [[nodiscard]] const Gaussian& density() const { return density_; }
    /// All trial vectors (N, B) in order of arrival.
    [[nodiscard]] Eigen::Map<const RowMatrix> rows() const;
    /// The mean over members of their t-th trial (T, B), where T is that of the first member.
    /// Members with another T are left out of it.
    [[nodiscard]] const RowMatrix& trial_means() const { return trial_means_; }

  private:
    GroupStatistics statistics_;
    Gaussian density_;
    std::vector<double> rows_;
    RowMatrix trial_means_;
    double n_averaged_ = 1;
};

}  // namespace trautoml
