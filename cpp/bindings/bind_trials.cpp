#include <pybind11/eigen.h>

#include "bindings.hpp"
#include "trautoml/trials.hpp"

namespace py = pybind11;

void trautoml::python::bind_trials(py::module_& module) {
    module.def("check_trials", &check_trials, py::arg("trials").noconvert(),
               "Raise ValueError unless (T, B) is not empty and all scores are finite and small.");
}
