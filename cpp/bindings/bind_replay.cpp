#include <pybind11/eigen.h>

#include "bindings.hpp"
#include "trautoml/replay.hpp"

namespace py = pybind11;

void trautoml::python::bind_replay(py::module_& module) {
    module.def(
        "replay",
        [](const MarkovParameters& parameters, Eigen::Index n_clusters, const Trials& presets,
           const Trials& rows, const Eigen::Ref<const IndexMatrix>& offsets,
           const Eigen::Ref<const IndexMatrix>& orders, unsigned n_threads) {
            Replays out;
            {
                // Safe: the arguments hold references to the arrays, which Python code owns and
                // doesn't hand out, and nothing below touches a Python object.
                const py::gil_scoped_release release;
                out = replay(parameters, n_clusters, presets, rows, offsets, orders, n_threads);
            }
            return py::make_tuple(std::move(out.labels), std::move(out.kinds),
                                  std::move(out.p_values), std::move(out.n_groups));
        },
        py::arg("parameters"), py::arg("n_clusters"), py::arg("presets").noconvert(),
        py::arg("rows").noconvert(), py::arg("offsets").noconvert(), py::arg("orders").noconvert(),
        py::arg("n_threads"),
        "Replay many orders of a stream of tasks; labels, kinds, p-values, numbers of groups.");
}
