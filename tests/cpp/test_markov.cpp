#include <doctest/doctest.h>

#include <limits>
#include <stdexcept>

#include "oracle.hpp"
#include "trautoml/markov.hpp"

using trautoml::Covariance;
using trautoml::Decision;
using trautoml::Kind;
using trautoml::MarkovParameters;
using trautoml::MarkovState;
using trautoml::Pairing;
using trautoml::RowMatrix;

namespace {

/// Tasks around a few centres; some with a spread of their own.
RowMatrix draw_task(std::mt19937_64& random, const RowMatrix& centres, Eigen::Index n_trials) {
    const auto k = static_cast<Eigen::Index>(random() % static_cast<unsigned>(centres.rows()));
    RowMatrix trials = oracle::normal(random, n_trials, centres.cols(), 0.0, 0.01);
    trials.rowwise() += centres.row(k);
    if (random() % 4 == 0) trials.array() += 0.015;
    return trials;
}

void check_decision(const oracle::State& slow, const Decision& got, const RowMatrix& trials) {
    const auto expected = slow.log_posterior(trials);
    const auto n_groups = static_cast<Eigen::Index>(slow.groups.size());
    std::size_t best = 0;
    for (std::size_t k = 0; k < expected.size(); ++k)
        if (expected[k] > expected[best]) best = k;
    REQUIRE(got.log_posterior.size() == n_groups);
    for (Eigen::Index k = 0; k < n_groups; ++k)
        CHECK(oracle::error(got.log_posterior(k), expected[static_cast<std::size_t>(k)]) < 1e-12);
    CHECK(oracle::error(got.log_posterior_of_winner, expected[best]) < 1e-12);

    const bool group_won = static_cast<Eigen::Index>(best) < n_groups;
    REQUIRE(got.test.has_value() == (group_won && slow.parameters.alpha > 0));
    REQUIRE(got.tested_group.has_value() == got.test.has_value());
    CHECK((got.kind == Kind::opened) == !group_won);
    bool rejected = false;
    if (got.test) {
        const oracle::Tasks& members = slow.groups[best];
        const oracle::Real step = slow.parameters.score_resolution;
        const oracle::Real q = step * step / 12;
        const oracle::Hotelling f = slow.parameters.pairing == Pairing::anderson
                                        ? oracle::anderson(trials, oracle::stacked(members), q)
                                        : oracle::average(trials, members, q);
        CHECK(*got.tested_group == static_cast<Eigen::Index>(best));
        CHECK(f.error(got.test->statistic) < f.tolerance());
        rejected = got.test->p_value < slow.parameters.alpha;
        CHECK((got.kind == Kind::split) == rejected);
    }
    CHECK(got.group == (group_won && !rejected ? static_cast<Eigen::Index>(best) : n_groups));
}

void run_stream(const MarkovParameters& parameters, Eigen::Index n_clusters, Eigen::Index n_probes,
                bool equal_trials, unsigned seed) {
    std::mt19937_64 random(seed);
    const RowMatrix presets = oracle::uniform(random, 64 * n_clusters, n_probes);
    const RowMatrix centres = oracle::uniform(random, 5, n_probes);
    oracle::State slow{parameters, presets, n_clusters};
    MarkovState state(parameters, presets.topRows(n_clusters));
    for (int i = 0; i < 30; ++i) {
        const Eigen::Index n_trials = n_probes + 2 + (equal_trials ? 0 : i % 3 * n_probes);
        const RowMatrix trials = draw_task(random, centres, n_trials);
        const Decision decision = state.predict(trials);
        if (i == 0) {
            CHECK(decision.kind == Kind::opened);
            CHECK(decision.log_posterior_of_winner == 0.0);
        } else {
            check_decision(slow, decision, trials);
            const Eigen::VectorXd all = state.log_posterior(trials);
            const auto expected = slow.log_posterior(trials);
            REQUIRE(all.size() == static_cast<Eigen::Index>(expected.size()));
            for (Eigen::Index k = 0; k < all.size(); ++k)
                CHECK(oracle::error(all(k), expected[static_cast<std::size_t>(k)]) < 1e-12);
        }
        state.commit(trials, decision.kind, decision.group,
                     presets.middleRows(state.n_clusters(), state.n_clusters()));
        slow.commit(trials, decision.kind, decision.group);
        REQUIRE(state.n_clusters() == slow.n_clusters);
        for (Eigen::Index k = 0; k < state.n_groups(); ++k)
            CHECK(oracle::error_of(state.covariance(k),
                                   slow.covariance_of(slow.groups[static_cast<std::size_t>(k)])) <
                  1e-12);
    }
    CHECK(state.labels().size() == 30);
}

}  // namespace

TEST_CASE("whole streams against the dense state") {
    for (const Covariance covariance : {Covariance::trials, Covariance::paper})
        for (const Pairing pairing : {Pairing::anderson, Pairing::average})
            for (const Eigen::Index n_probes : {1, 2, 6})
                // 1 and 3 double on the way; 300 is more than one block of distances.
                for (const Eigen::Index n_clusters : {1, 3, 300})
                    for (unsigned seed = 0; seed < 2; ++seed) {
                        MarkovParameters parameters;
                        parameters.covariance = covariance;
                        parameters.pairing = pairing;
                        run_stream(parameters, n_clusters, n_probes, pairing == Pairing::average,
                                   seed);
                    }
}

TEST_CASE("parameters at the ends of their ranges against the dense state") {
    MarkovParameters untested;
    untested.alpha = 0;
    run_stream(untested, 40, 2, false, 1);
    MarkovParameters strict;
    strict.alpha = 0.9;
    run_stream(strict, 4, 2, false, 2);
    MarkovParameters to_the_letter;
    to_the_letter.prior_strength = 0;
    to_the_letter.score_resolution = 0;
    run_stream(to_the_letter, 40, 2, false, 3);
}

TEST_CASE("gamma 0 never joins and gamma inf always does") {
    std::mt19937_64 random(12);
    const RowMatrix presets = oracle::uniform(random, 64, 2);
    const RowMatrix trials = oracle::normal(random, 8, 2, 0.5, 0.01);
    const RowMatrix far = oracle::normal(random, 8, 2, 0.9, 0.01);
    for (const double gamma : {0.0, std::numeric_limits<double>::infinity()}) {
        MarkovParameters parameters;
        parameters.gamma = gamma;
        parameters.alpha = 0;
        MarkovState state(parameters, presets);
        state.commit(trials, Kind::opened, 0, presets.topRows(0));
        const Decision same = state.predict(trials);
        const Decision other = state.predict(far);
        const bool joins = gamma > 0;
        CHECK((same.kind == Kind::joined) == joins);
        CHECK((other.kind == Kind::joined) == joins);
        CHECK(same.log_posterior(0) == (joins ? 0.0 : -std::numeric_limits<double>::infinity()));
    }
}

TEST_CASE("the nearest preset of the lowest index is taken") {
    RowMatrix presets(4, 1);
    presets << 0.9, 0.4, 0.4, 0.1;
    MarkovParameters parameters;
    parameters.alpha = 0;
    MarkovState state(parameters, presets);
    const RowMatrix trials = RowMatrix::Constant(1, 1, 0.4);
    const Eigen::VectorXd first = state.log_posterior(trials);
    CHECK(first(1) == 0.0);
    CHECK(first(2) == -std::numeric_limits<double>::infinity());
}

TEST_CASE("a refused commit changes nothing") {
    std::mt19937_64 random(13);
    const RowMatrix presets = oracle::uniform(random, 2, 2);
    MarkovState state(MarkovParameters{}, presets);
    const RowMatrix trials = oracle::normal(random, 8, 2, 0.5, 0.01);
    const RowMatrix other = oracle::normal(random, 8, 2, 0.9, 0.01);
    state.commit(trials, Kind::opened, 0, presets.topRows(0));
    const Eigen::VectorXd before = state.log_posterior(other);

    CHECK_THROWS_WITH_AS(state.commit(other, Kind::joined, 1, presets),
                         doctest::Contains("predict again"), std::invalid_argument);
    CHECK_THROWS_AS(state.commit(other, Kind::split, 0, presets), std::invalid_argument);
    REQUIRE(state.needs_fresh(Kind::opened));
    CHECK_THROWS_WITH_AS(state.commit(other, Kind::opened, 1, presets.topRows(1)),
                         doctest::Contains("2 fresh presets"), std::invalid_argument);
    const RowMatrix wide = oracle::normal(random, 8, 3, 0.5, 0.01);
    CHECK_THROWS_WITH_AS(state.commit(wide, Kind::opened, 1, presets),
                         doctest::Contains("(T, 2), got (8, 3)"), std::invalid_argument);

    CHECK(state.labels().size() == 1);
    CHECK((state.log_posterior(other).array() == before.array()).all());
}

TEST_CASE("what a state refuses") {
    const RowMatrix presets = RowMatrix::Constant(3, 6, 0.5);
    MarkovParameters parameters;
    const RowMatrix few = RowMatrix::Constant(6, 6, 0.5);
    CHECK_THROWS_WITH_AS((void)MarkovState(parameters, presets).predict(few),
                         doctest::Contains("alpha=0"), std::invalid_argument);
    parameters.pairing = Pairing::average;
    MarkovState state(parameters, presets);
    state.commit(RowMatrix::Constant(8, 6, 0.5), Kind::opened, 0, presets);
    CHECK_THROWS_WITH_AS((void)state.predict(RowMatrix::Constant(9, 6, 0.5)),
                         doctest::Contains("pairing='anderson'"), std::invalid_argument);
    CHECK_THROWS_AS(MarkovState(parameters, RowMatrix(0, 6)), std::invalid_argument);
    CHECK_THROWS_AS(MarkovState(parameters, RowMatrix::Constant(1, 1, std::nan(""))),
                    std::invalid_argument);
    parameters.sigma0_sq = 0;
    CHECK_THROWS_WITH_AS(MarkovState(parameters, presets), doctest::Contains("sigma0_sq"),
                         std::invalid_argument);
}

TEST_CASE("likelihoods that all underflow are an error and not a NaN") {
    std::mt19937_64 random(15);
    MarkovParameters parameters;
    parameters.gamma = std::numeric_limits<double>::infinity();
    parameters.prior_strength = 0;
    parameters.score_resolution = 0;
    MarkovState state(parameters, oracle::uniform(random, 3, 2));
    state.commit(oracle::normal(random, 8, 2, 0.0, 1e-154), Kind::opened, 0, RowMatrix(0, 2));
    CHECK_THROWS_WITH_AS((void)state.predict(oracle::normal(random, 8, 2, 9e5, 1.0)),
                         doctest::Contains("score_resolution or prior_strength"),
                         std::domain_error);
}

TEST_CASE("empty clusters that are left out of the sum are negligible") {
    std::mt19937_64 random(16);
    const RowMatrix presets = oracle::uniform(random, 2000, 3);
    for (const double sigma0_sq : {1e-8, 3e-4, 1e-2, 1.0}) {
        MarkovParameters parameters;
        parameters.sigma0_sq = sigma0_sq;
        oracle::State slow{parameters, presets, 2000};
        MarkovState state(parameters, presets);
        const RowMatrix first = oracle::normal(random, 8, 3, 0.3, 0.01);
        state.commit(first, Kind::opened, 0, presets.topRows(0));
        slow.commit(first, Kind::opened, 0);
        for (int i = 0; i < 10; ++i)
            check_decision(slow, state.predict(presets.row(i).replicate(8, 1)),
                           presets.row(i).replicate(8, 1));
    }
}
