#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
    module.doc() = "The compiled core of trautoml: sequential clustering and its test.";
    trautoml::python::bind_f_distribution(module);
    trautoml::python::bind_trials(module);
    trautoml::python::bind_mean_test(module);
    trautoml::python::bind_markov(module);
    trautoml::python::bind_replay(module);
}
