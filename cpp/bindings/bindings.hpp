#pragma once

#include <pybind11/pybind11.h>

namespace trautoml::python {

void bind_f_distribution(pybind11::module_& module);
void bind_trials(pybind11::module_& module);
void bind_mean_test(pybind11::module_& module);
void bind_markov(pybind11::module_& module);
void bind_replay(pybind11::module_& module);

}  // namespace trautoml::python
