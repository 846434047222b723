#include <pybind11/eigen.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "trautoml/markov.hpp"

namespace py = pybind11;

namespace trautoml::python {
namespace {

Covariance covariance_from(const std::string& name) {
    if (name == "trials") return Covariance::trials;
    if (name == "paper") return Covariance::paper;
    throw std::invalid_argument("expected covariance 'trials' or 'paper', got '" + name + "'");
}

Pairing pairing_from(const std::string& name) {
    if (name == "anderson") return Pairing::anderson;
    if (name == "average") return Pairing::average;
    throw std::invalid_argument("expected pairing 'anderson' or 'average', got '" + name + "'");
}

Kind kind_from(int code) {
    if (code < 0 || code > 2)
        throw std::invalid_argument("expected kind 0, 1 or 2, got " + std::to_string(code));
    return static_cast<Kind>(code);
}

std::optional<double> statistic(const Decision& decision) {
    return decision.test ? std::optional(decision.test->statistic) : std::nullopt;
}

std::optional<double> p_value(const Decision& decision) {
    return decision.test ? std::optional(decision.test->p_value) : std::nullopt;
}

py::array_t<std::int64_t> labels(const MarkovState& state) {
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(state.labels().size()),
                                     state.labels().data());
}

RowMatrix means(const MarkovState& state) {
    RowMatrix result(state.n_groups(), state.n_probes());
    for (Eigen::Index k = 0; k < state.n_groups(); ++k)
        result.row(k) = state.groups()[static_cast<std::size_t>(k)].statistics().mean();
    return result;
}

py::array_t<double> covariances(const MarkovState& state) {
    const Eigen::Index n_probes = state.n_probes();
    py::array_t<double> result({state.n_groups(), n_probes, n_probes});
    for (Eigen::Index k = 0; k < state.n_groups(); ++k)
        Eigen::Map<RowMatrix>(result.mutable_data(k, 0, 0), n_probes, n_probes) =
            state.covariance(k);
    return result;
}

void bind_parameters(py::module_& module) {
    py::class_<MarkovParameters>(module, "MarkovParameters",
                                 "The constants of the method; ValueError for one out of range.")
        .def(py::init([](double gamma, double alpha, double sigma0_sq,
                         const std::string& covariance, const std::string& pairing,
                         double prior_strength, double score_resolution) {
                 const MarkovParameters parameters{gamma,
                                                   alpha,
                                                   sigma0_sq,
                                                   covariance_from(covariance),
                                                   pairing_from(pairing),
                                                   prior_strength,
                                                   score_resolution};
                 parameters.check();
                 return parameters;
             }),
             py::kw_only(), py::arg("gamma"), py::arg("alpha"), py::arg("sigma0_sq"),
             py::arg("covariance"), py::arg("pairing"), py::arg("prior_strength"),
             py::arg("score_resolution"));
}

void bind_decision(py::module_& module) {
    py::class_<Decision>(module, "Decision", "What the state says about a task.")
        .def_property_readonly("kind", [](const Decision& d) { return static_cast<int>(d.kind); })
        .def_readonly("group", &Decision::group)
        .def_property_readonly(
            "posterior", [](const Decision& d) { return std::exp(d.log_posterior_of_winner); })
        // A copy: the array outlives this object.
        .def_property_readonly("log_posterior", [](const Decision& d) { return d.log_posterior; })
        .def_property_readonly("statistic", &statistic)
        .def_property_readonly("p_value", &p_value)
        .def_readonly("tested_group", &Decision::tested_group);
}

void bind_state(py::module_& module) {
    py::class_<MarkovState>(module, "MarkovState", "The state of the sequential clustering.")
        .def(py::init<const MarkovParameters&, const Trials&>(), py::arg("parameters"),
             py::arg("presets").noconvert())
        .def("predict", &MarkovState::predict, py::arg("trials").noconvert())
        .def("log_posterior", &MarkovState::log_posterior, py::arg("trials").noconvert())
        .def(
            "commit",
            [](MarkovState& state, const Trials& trials, int kind, Eigen::Index group,
               const Trials& fresh) { state.commit(trials, kind_from(kind), group, fresh); },
            py::arg("trials").noconvert(), py::arg("kind"), py::arg("group"),
            py::arg("fresh").noconvert())
        .def(
            "needs_fresh",
            [](const MarkovState& state, int kind) { return state.needs_fresh(kind_from(kind)); },
            py::arg("kind"))
        .def_property_readonly("n_clusters", &MarkovState::n_clusters)
        .def_property_readonly("n_probes", &MarkovState::n_probes)
        .def_property_readonly("n_groups", &MarkovState::n_groups)
        .def_property_readonly("labels", &labels)
        .def_property_readonly("means", &means)
        .def_property_readonly("covariances", &covariances);
}

}  // namespace

void bind_markov(py::module_& module) {
    bind_parameters(module);
    bind_decision(module);
    bind_state(module);
}

}  // namespace trautoml::python
