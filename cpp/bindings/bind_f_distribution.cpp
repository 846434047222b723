#include "bindings.hpp"
#include "trautoml/f_distribution.hpp"

namespace py = pybind11;

void trautoml::python::bind_f_distribution(py::module_& module) {
    module.def("f_log_sf", &f_log_sf, py::arg("f"), py::arg("d1"), py::arg("d2"),
               "Logarithm of the survival function of Fisher's F.");
    module.def("f_sf", &f_sf, py::arg("f"), py::arg("d1"), py::arg("d2"),
               "Survival function of Fisher's F.");
}
