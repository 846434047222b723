#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "oracle.hpp"
#include "trautoml/replay.hpp"

using trautoml::Decision;
using trautoml::IndexMatrix;
using trautoml::MarkovParameters;
using trautoml::MarkovState;
using trautoml::RowMatrix;

namespace {

struct Stream {
    RowMatrix presets;
    oracle::Tasks tasks;
    RowMatrix rows;
    IndexMatrix offsets;
    IndexMatrix orders;
};

Stream draw_stream() {
    std::mt19937_64 random(14);
    Stream stream;
    stream.presets = oracle::uniform(random, 64, 3);
    const RowMatrix centres = oracle::uniform(random, 6, 3);
    stream.offsets = IndexMatrix::Zero(25, 1);
    for (int i = 0; i < 24; ++i) {
        RowMatrix trials = oracle::normal(random, 5 + i % 4, 3, 0.0, 0.01);
        trials.rowwise() += centres.row(i % 6);
        stream.tasks.push_back(trials);
        stream.offsets(i + 1, 0) = stream.offsets(i, 0) + trials.rows();
    }
    stream.rows = oracle::stacked(stream.tasks);
    stream.orders.resize(9, 20);
    std::vector<std::int64_t> order(24);
    for (Eigen::Index r = 0; r < 9; ++r) {
        std::iota(order.begin(), order.end(), 0);
        std::shuffle(order.begin(), order.end(), random);
        for (Eigen::Index i = 0; i < 20; ++i)
            stream.orders(r, i) = order[static_cast<std::size_t>(i)];
    }
    return stream;
}

}  // namespace

TEST_CASE("replay equals live states, for any number of threads") {
    const Stream s = draw_stream();
    const MarkovParameters parameters;
    for (const unsigned n_threads : {1U, 2U, 16U}) {
        const auto got =
            trautoml::replay(parameters, 2, s.presets, s.rows, s.offsets, s.orders, n_threads);
        for (Eigen::Index r = 0; r < s.orders.rows(); ++r) {
            MarkovState state(parameters, s.presets.topRows(2));
            for (Eigen::Index i = 0; i < s.orders.cols(); ++i) {
                const RowMatrix& trials = s.tasks[static_cast<std::size_t>(s.orders(r, i))];
                const Decision decision = state.predict(trials);
                const Eigen::Index k = state.n_clusters();
                state.commit(trials, decision.kind, decision.group, s.presets.middleRows(k, k));
                CHECK(got.labels(r, i) == decision.group);
                CHECK(got.kinds(r, i) == static_cast<std::uint8_t>(decision.kind));
                if (decision.test)
                    CHECK(got.p_values(r, i) == decision.test->p_value);
                else
                    CHECK(std::isnan(got.p_values(r, i)));
            }
            CHECK(got.n_groups(r) == state.n_groups());
        }
    }
}

TEST_CASE("the error of the lowest order is the one reported") {
    Stream s = draw_stream();
    s.rows(s.offsets(5, 0), 1) = std::nan("");
    Eigen::Index first = 0;
    while ((s.orders.row(first).array() != 5).all()) ++first;
    const std::string expected = "order " + std::to_string(first) + ", task 5: ";
    for (const unsigned n_threads : {1U, 4U})
        CHECK_THROWS_WITH_AS((void)trautoml::replay(MarkovParameters{}, 2, s.presets, s.rows,
                                                    s.offsets, s.orders, n_threads),
                             doctest::Contains(expected.c_str()), std::invalid_argument);
}

TEST_CASE("indices and shapes that don't fit") {
    const Stream s = draw_stream();
    const MarkovParameters parameters;
    CHECK_THROWS_WITH_AS((void)trautoml::replay(parameters, 2, s.presets.topRows(31), s.rows,
                                                s.offsets, s.orders, 1),
                         doctest::Contains("32 presets"), std::invalid_argument);
    CHECK_THROWS_AS(
        (void)trautoml::replay(parameters, 2, s.presets, s.rows.topRows(7), s.offsets, s.orders, 1),
        std::invalid_argument);
    IndexMatrix orders = s.orders;
    orders(3, 3) = 24;
    CHECK_THROWS_AS((void)trautoml::replay(parameters, 2, s.presets, s.rows, s.offsets, orders, 1),
                    std::invalid_argument);
    CHECK(trautoml::replay(parameters, 2, s.presets, s.rows, s.offsets, s.orders.topRows(0), 4)
              .labels.rows() == 0);
}
