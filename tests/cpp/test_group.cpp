#include <doctest/doctest.h>

#include <stdexcept>

#include "oracle.hpp"
#include "trautoml/group.hpp"

using trautoml::Covariance;
using trautoml::Group;
using trautoml::Regularisation;

TEST_CASE("incremental statistics against all rows, members of unequal T") {
    std::mt19937_64 random(5);
    const Regularisation prior{1.0, 9.5e-5, 1e-6 / 12};
    for (const Covariance kind : {Covariance::trials, Covariance::paper})
        for (const Eigen::Index n_probes : {1, 2, 6}) {
            oracle::Tasks members;
            std::vector<Group> group;
            for (int i = 0; i < 40; ++i) {
                members.push_back(oracle::normal(random, 1 + i % 9, n_probes, 0.6, 0.02));
                if (i == 0)
                    group.emplace_back(members.back(), kind, prior);
                else
                    group[0].add(members.back(), kind, prior);
                const auto& statistics = group[0].statistics();
                CHECK(oracle::error_of(statistics.mean(), oracle::group_mean(members)) < 1e-14);
                const trautoml::RowMatrix all = oracle::stacked(members);
                CHECK(oracle::error_of(statistics.mean_of_rows(), oracle::mean(all)) < 1e-14);
                CHECK((group[0].rows().array() == all.array()).all());
                const auto expected =
                    oracle::covariance(members, kind, prior.prior_strength, prior.prior_variance,
                                       prior.rounding_variance);
                CHECK(oracle::error_of(statistics.covariance(kind, prior), expected) < 1e-12);
            }
        }
}

TEST_CASE("means over members of the t-th trial") {
    std::mt19937_64 random(6);
    const Regularisation prior{1.0, 9.5e-5, 0.0};
    trautoml::RowMatrix sum = oracle::normal(random, 8, 3, 0.5, 0.1);
    Group group(sum, Covariance::trials, prior);
    for (int i = 0; i < 10; ++i) {
        const trautoml::RowMatrix trials = oracle::normal(random, 8, 3, 0.5, 0.1);
        group.add(trials, Covariance::trials, prior);
        sum += trials;
    }
    CHECK(oracle::error_of(group.trial_means(), sum / 11) < 1e-14);
}

TEST_CASE("a member that makes the covariance singular leaves the group as it was") {
    std::mt19937_64 random(7);
    const Regularisation none{0.0, 9.5e-5, 0.0};
    Group group(oracle::normal(random, 8, 3, 0.5, 0.1), Covariance::paper, none);
    const Eigen::MatrixXd before = group.statistics().covariance(Covariance::paper, none);
    CHECK_THROWS_AS(group.add(oracle::normal(random, 8, 3, 0.5, 0.1), Covariance::paper, none),
                    std::domain_error);
    CHECK(group.statistics().n_members() == 1);
    CHECK(group.rows().rows() == 8);
    CHECK((group.statistics().covariance(Covariance::paper, none).array() == before.array()).all());
}
