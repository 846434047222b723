#pragma once

// Slow, dense restatements of the design's formulas: explicit inverses and determinants, loops over
// all rows, no incremental statistics, in long double. They share no code with the core.

#include <Eigen/LU>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "trautoml/markov.hpp"

namespace oracle {

using Real = long double;
using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;
using Vector = Eigen::Matrix<Real, Eigen::Dynamic, 1>;
using Tasks = std::vector<trautoml::RowMatrix>;

/// |a - b| relative to the larger of 1 and |b|.
inline double error(double a, Real b) {
    return static_cast<double>(std::abs(a - b) / std::max<Real>(1, std::abs(b)));
}

/// Largest difference of two matrices relative to the largest entry.
template <class A, class B>
double error_of(const A& a, const B& b) {
    const Matrix expected = b.template cast<Real>();
    const Matrix got = a.template cast<Real>();
    return static_cast<double>((got - expected).cwiseAbs().maxCoeff() /
                               expected.cwiseAbs().maxCoeff());
}

inline trautoml::RowMatrix normal(std::mt19937_64& random, Eigen::Index rows, Eigen::Index cols,
                                  double mean, double sd) {
    std::normal_distribution<double> draw(mean, sd);
    return trautoml::RowMatrix::NullaryExpr(rows, cols, [&] { return draw(random); });
}

inline trautoml::RowMatrix uniform(std::mt19937_64& random, Eigen::Index rows, Eigen::Index cols) {
    std::uniform_real_distribution<double> draw(0.0, 1.0);
    return trautoml::RowMatrix::NullaryExpr(rows, cols, [&] { return draw(random); });
}

inline Vector mean(const trautoml::RowMatrix& rows) {
    Vector sum = Vector::Zero(rows.cols());
    for (Eigen::Index t = 0; t < rows.rows(); ++t) sum += rows.row(t).transpose().cast<Real>();
    return sum / static_cast<Real>(rows.rows());
}

inline trautoml::RowMatrix stacked(const Tasks& members) {
    Eigen::Index n = 0;
    for (const auto& trials : members) n += trials.rows();
    trautoml::RowMatrix all(n, members.front().cols());
    n = 0;
    for (const auto& trials : members) {
        all.middleRows(n, trials.rows()) = trials;
        n += trials.rows();
    }
    return all;
}

inline Vector group_mean(const Tasks& members) {
    Vector sum = Vector::Zero(members.front().cols());
    for (const auto& trials : members) sum += mean(trials);
    return sum / static_cast<Real>(members.size());
}

inline Matrix covariance(const Tasks& members, trautoml::Covariance kind, Real strength,
                         Real prior_variance, Real q) {
    const Vector centre = group_mean(members);
    const Eigen::Index n_probes = centre.size();
    Matrix s = Matrix::Zero(n_probes, n_probes);
    Real m = 0;
    if (kind == trautoml::Covariance::paper && members.size() > 1) {
        m = static_cast<Real>(members.size());
        for (const auto& trials : members) {
            const Vector d = mean(trials) - centre;
            s += d * d.transpose();
        }
    } else {
        const trautoml::RowMatrix all = stacked(members);
        m = static_cast<Real>(all.rows());
        for (Eigen::Index t = 0; t < all.rows(); ++t) {
            const Vector d = all.row(t).transpose().cast<Real>() - centre;
            s += d * d.transpose();
        }
    }
    s /= m;
    const Matrix identity = Matrix::Identity(n_probes, n_probes);
    return (m * s + strength * prior_variance * identity) / (m + strength) + q * identity;
}

inline Real log_density(const Vector& x, const Vector& centre, const Matrix& sigma) {
    const Vector d = x - centre;
    const Real two_pi = 2 * std::acos(Real(-1));
    return -(static_cast<Real>(x.size()) * std::log(two_pi) + std::log(sigma.determinant()) +
             d.dot(sigma.inverse() * d)) /
           2;
}

struct Hotelling {
    Real statistic;
    /// Condition of the scatter. Pairs in double carry rounding errors that it magnifies in F.
    Real condition;

    /// Relative to 1 for a small F: the rounding of means that all but agree is then all of it.
    [[nodiscard]] double error(double got) const { return oracle::error(got, statistic); }
    [[nodiscard]] double tolerance() const {
        return std::max(1e-12, static_cast<double>(condition) * 1e-15);
    }
};

inline Hotelling hotelling(const std::vector<Vector>& z, Real q) {
    const auto n = static_cast<Real>(z.size());
    const auto n_probes = static_cast<Real>(z.front().size());
    Vector centre = Vector::Zero(z.front().size());
    for (const Vector& v : z) centre += v / n;
    Matrix scatter = n * q * Matrix::Identity(centre.size(), centre.size());
    for (const Vector& v : z) scatter += (v - centre) * (v - centre).transpose();
    const Matrix inverse = scatter.inverse();
    return {n * (n - n_probes) / n_probes * centre.dot(inverse * centre),
            scatter.norm() * inverse.norm()};
}

/// F by the design's z_i = x_i - a y_i + a mean(y_1..y_T) - mean(y_1..y_N).
inline Hotelling anderson(const trautoml::RowMatrix& x, const trautoml::RowMatrix& y, Real q) {
    if (x.rows() > y.rows()) return anderson(y, x, q);
    const Real a = std::sqrt(static_cast<Real>(x.rows()) / static_cast<Real>(y.rows()));
    const Vector head = mean(y.topRows(x.rows()));
    const Vector all = mean(y);
    std::vector<Vector> z;
    for (Eigen::Index i = 0; i < x.rows(); ++i)
        z.emplace_back(x.row(i).transpose().cast<Real>() - a * y.row(i).transpose().cast<Real>() +
                       a * head - all);
    return hotelling(z, q);
}

inline Hotelling average(const trautoml::RowMatrix& x, const Tasks& members, Real q) {
    std::vector<Vector> z;
    for (Eigen::Index t = 0; t < x.rows(); ++t) {
        Vector y = Vector::Zero(x.cols());
        for (const auto& trials : members)
            y += trials.row(t).transpose().cast<Real>() / static_cast<Real>(members.size());
        z.emplace_back(x.row(t).transpose().cast<Real>() - y);
    }
    return hotelling(z, q);
}

/// The whole state: every cluster's joint probability from all members' rows at every step.
struct State {
    trautoml::MarkovParameters parameters;
    trautoml::RowMatrix all_presets;
    Eigen::Index n_clusters;
    std::vector<bool> taken = std::vector<bool>(static_cast<std::size_t>(all_presets.rows()));
    std::vector<Tasks> groups = {};
    std::size_t n_tasks = 0;

    [[nodiscard]] Real prior_variance() const {
        return parameters.sigma0_sq *
               std::pow(static_cast<Real>(n_clusters), Real(-1) / all_presets.cols());
    }

    [[nodiscard]] Matrix covariance_of(const Tasks& members) const {
        const Real step = parameters.score_resolution;
        return covariance(members, parameters.covariance, parameters.prior_strength,
                          prior_variance(), step * step / 12);
    }

    /// Log posterior of groups, then of empty clusters in order.
    [[nodiscard]] std::vector<Real> log_posterior(const trautoml::RowMatrix& trials) const {
        const Vector x = mean(trials);
        const Real w = 1 - std::exp(-static_cast<Real>(groups.size()) * parameters.gamma);
        std::vector<Real> joint;
        for (const Tasks& members : groups)
            joint.push_back(
                std::log(w * static_cast<Real>(members.size()) / static_cast<Real>(n_tasks)) +
                log_density(x, group_mean(members), covariance_of(members)));
        const Matrix empty = prior_variance() * Matrix::Identity(x.size(), x.size());
        const auto n_empty = n_clusters - static_cast<Eigen::Index>(groups.size());
        for (Eigen::Index k = 0; k < n_clusters; ++k)
            if (!taken[static_cast<std::size_t>(k)])
                joint.push_back(std::log((1 - w) / static_cast<Real>(n_empty)) +
                                log_density(x, all_presets.row(k).transpose().cast<Real>(), empty));
        Real largest = -std::numeric_limits<Real>::infinity();
        for (const Real v : joint) largest = std::max(largest, v);
        Real total = 0;
        for (const Real v : joint) total += std::exp(v - largest);
        for (Real& v : joint) v -= largest + std::log(total);
        return joint;
    }

    void commit(const trautoml::RowMatrix& trials, trautoml::Kind kind, Eigen::Index group) {
        ++n_tasks;
        if (kind == trautoml::Kind::joined) {
            groups[static_cast<std::size_t>(group)].push_back(trials);
            return;
        }
        const Vector x = mean(trials);
        Eigen::Index nearest = -1;
        Real smallest = std::numeric_limits<Real>::infinity();
        for (Eigen::Index k = 0; k < n_clusters; ++k) {
            const Real distance = (all_presets.row(k).transpose().cast<Real>() - x).squaredNorm();
            if (!taken[static_cast<std::size_t>(k)] && distance < smallest) {
                smallest = distance;
                nearest = k;
            }
        }
        taken[static_cast<std::size_t>(nearest)] = true;
        groups.push_back({trials});
        if (static_cast<Eigen::Index>(groups.size()) == n_clusters) n_clusters *= 2;
    }
};

}  // namespace oracle
