#include "trautoml/group.hpp"

#include <utility>

namespace trautoml {
namespace {

GroupStatistics statistics_of(const Trials& trials) {
    GroupStatistics statistics(trials.cols());
    statistics.add(trials);
    return statistics;
}

}  // namespace

GroupStatistics::GroupStatistics(Eigen::Index n_probes)
    : mean_(Eigen::VectorXd::Zero(n_probes)),
      mean_of_rows_(Eigen::VectorXd::Zero(n_probes)),
      scatter_of_rows_(Eigen::MatrixXd::Zero(n_probes, n_probes)),
      scatter_of_means_(Eigen::MatrixXd::Zero(n_probes, n_probes)) {}

void GroupStatistics::add(const Trials& trials) {
    const Eigen::VectorXd x = row_mean(trials);
    const RowMatrix centred = trials.rowwise() - x.transpose();
    const auto members = static_cast<double>(n_members_);
    const auto old_rows = static_cast<double>(n_rows_);
    const auto new_rows = static_cast<double>(trials.rows());
    const double all_rows = old_rows + new_rows;

    const Eigen::VectorXd from_rows = x - mean_of_rows_;
    scatter_of_rows_.noalias() += centred.transpose() * centred;
    scatter_of_rows_.noalias() +=
        (old_rows * new_rows / all_rows) * from_rows * from_rows.transpose();
    const Eigen::VectorXd from_means = x - mean_;
    scatter_of_means_.noalias() +=
        (members / (members + 1.0)) * from_means * from_means.transpose();

    // The first member's mean is taken as it is, so that a task identical to it differs by exactly
    // 0.
    mean_of_rows_ = n_rows_ == 0 ? x : mean_of_rows_ + from_rows * (new_rows / all_rows);
    mean_ = n_members_ == 0 ? x : mean_ + from_means / (members + 1.0);
    n_rows_ += trials.rows();
    ++n_members_;
}

Eigen::MatrixXd GroupStatistics::covariance(Covariance kind,
                                            const Regularisation& regularisation) const {
    // The paper's Eq. 14 for one member is the same formula as `trials`.
    const bool of_means = kind == Covariance::paper && n_members_ > 1;
    const auto m = static_cast<double>(of_means ? n_members_ : n_rows_);
    Eigen::MatrixXd sigma = of_means ? scatter_of_means_ : scatter_of_rows_;
    if (!of_means) {
        const Eigen::VectorXd shift = mean_of_rows_ - mean_;
        sigma.noalias() += m * shift * shift.transpose();
    }
    const double weight = m + regularisation.prior_strength;
    sigma /= weight;
    sigma.diagonal().array() +=
        regularisation.prior_strength * regularisation.prior_variance / weight +
        regularisation.rounding_variance;
    return sigma;
}

Group::Group(const Trials& trials, Covariance kind, const Regularisation& regularisation)
    : statistics_(statistics_of(trials)),
      density_(density(kind, regularisation)),
      rows_(trials.data(), trials.data() + trials.size()),
      trial_means_(trials) {}

void Group::add(const Trials& trials, Covariance kind, const Regularisation& regularisation) {
    GroupStatistics statistics = statistics_;
    statistics.add(trials);
    Gaussian density(statistics.mean(), statistics.covariance(kind, regularisation));
    rows_.insert(rows_.end(), trials.data(), trials.data() + trials.size());

    statistics_ = std::move(statistics);
    density_ = std::move(density);
    if (trials.rows() == trial_means_.rows()) {
        n_averaged_ += 1.0;
        trial_means_ += (trials - trial_means_) / n_averaged_;
    }
}

Gaussian Group::density(Covariance kind, const Regularisation& regularisation) const {
    return {statistics_.mean(), statistics_.covariance(kind, regularisation)};
}

Eigen::Map<const RowMatrix> Group::rows() const {
    return {rows_.data(), statistics_.n_rows(), statistics_.mean().size()};
}

}  // namespace trautoml
