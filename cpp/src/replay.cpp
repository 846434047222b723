#include "trautoml/replay.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace trautoml {
namespace {

class Replayer {
  public:
    Replayer(const MarkovParameters& parameters, Eigen::Index n_clusters, const Trials& presets,
             const Trials& rows, const Eigen::Ref<const IndexMatrix>& offsets)
        : parameters_(parameters),
          n_clusters_(n_clusters),
          presets_(presets),
          rows_(rows),
          offsets_(offsets) {}

    /// Writes row r of the result, and no other, so that threads don't meet.
    void run(Eigen::Index r, const Eigen::Ref<const IndexMatrix>& orders, Replays& out) const {
        MarkovState state(parameters_, presets_.topRows(n_clusters_));
        for (Eigen::Index i = 0; i < orders.cols(); ++i) {
            try {
                step(state, orders(r, i), r, i, out);
            } catch (const std::logic_error& error) {
                throw std::invalid_argument("order " + std::to_string(r) + ", task " +
                                            std::to_string(orders(r, i)) + ": " + error.what());
            }
        }
        out.n_groups(r) = state.n_groups();
    }

  private:
    void step(MarkovState& state, std::int64_t task, Eigen::Index r, Eigen::Index i,
              Replays& out) const {
        const auto trials =
            rows_.middleRows(offsets_(task, 0), offsets_(task + 1, 0) - offsets_(task, 0));
        const Decision decision = state.predict(trials);
        const Eigen::Index k = state.n_clusters();
        state.commit(trials, decision.kind, decision.group,
                     state.needs_fresh(decision.kind) ? Trials(presets_.middleRows(k, k))
                                                      : Trials(presets_.topRows(0)));
        out.labels(r, i) = decision.group;
        out.kinds(r, i) = static_cast<std::uint8_t>(decision.kind);
        out.p_values(r, i) =
            decision.test ? decision.test->p_value : std::numeric_limits<double>::quiet_NaN();
    }

    const MarkovParameters& parameters_;
    Eigen::Index n_clusters_;
    const Trials& presets_;
    const Trials& rows_;
    const Eigen::Ref<const IndexMatrix>& offsets_;
};

void check_input(Eigen::Index n_clusters, const Trials& presets, const Trials& rows,
                 const Eigen::Ref<const IndexMatrix>& offsets,
                 const Eigen::Ref<const IndexMatrix>& orders) {
    Eigen::Index needed = n_clusters;
    while (n_clusters >= 1 && needed <= orders.cols()) needed *= 2;
    if (n_clusters < 1 || presets.rows() < needed)
        throw std::invalid_argument("expected at least " + std::to_string(needed) +
                                    " presets for " + std::to_string(orders.cols()) +
                                    " tasks, got " + std::to_string(presets.rows()));
    const Eigen::Index n_tasks = offsets.rows() - 1;
    bool ordered = offsets.cols() == 1 && n_tasks >= 0 && offsets(0, 0) == 0 &&
                   offsets(n_tasks, 0) == rows.rows();
    for (Eigen::Index i = 0; ordered && i < n_tasks; ++i)
        ordered = offsets(i, 0) <= offsets(i + 1, 0);
    if (!ordered)
        throw std::invalid_argument(
            "expected offsets of shape (tasks + 1, 1) that rise from 0 to the number of rows");
    if ((orders.array() < 0).any() || (orders.array() >= n_tasks).any())
        throw std::invalid_argument("expected orders of task numbers from 0 to " +
                                    std::to_string(n_tasks - 1));
}

}  // namespace

Replays replay(const MarkovParameters& parameters, Eigen::Index n_clusters, const Trials& presets,
               const Trials& rows, const Eigen::Ref<const IndexMatrix>& offsets,
               const Eigen::Ref<const IndexMatrix>& orders, unsigned n_threads) {
    parameters.check();
    check_input(n_clusters, presets, rows, offsets, orders);
    const Eigen::Index n_orders = orders.rows();
    Replays out;
    out.labels.resize(n_orders, orders.cols());
    out.kinds.resize(n_orders, orders.cols());
    out.p_values.resize(n_orders, orders.cols());
    out.n_groups.resize(n_orders);

    const Replayer replayer(parameters, n_clusters, presets, rows, offsets);
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(n_orders));
    std::atomic<Eigen::Index> next{0};
    std::atomic<Eigen::Index> end{n_orders};
    const auto work = [&] {
        // Orders are handed out from the lowest, and all below a failed one are run to their end,
        // so that the error that is reported doesn't depend on the threads.
        for (Eigen::Index r = next++; r < end; r = next++) {
            try {
                replayer.run(r, orders, out);
            } catch (...) {
                errors[static_cast<std::size_t>(r)] = std::current_exception();
                for (Eigen::Index now = end; r < now && !end.compare_exchange_weak(now, r);) {
                }
            }
        }
    };
    const auto n_workers = std::min<Eigen::Index>(std::max(n_threads, 1U), n_orders);
    std::vector<std::thread> threads;
    try {
        for (Eigen::Index i = 1; i < n_workers; ++i) threads.emplace_back(work);
    } catch (const std::system_error&) {
        // The system has no more threads to give; those that run share the work.
    }
    work();
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& error : errors)
        if (error) std::rethrow_exception(error);
    return out;
}

}  // namespace trautoml
