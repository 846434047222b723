#include <pybind11/eigen.h>

#include "bindings.hpp"
#include "trautoml/mean_test.hpp"

namespace py = pybind11;

void trautoml::python::bind_mean_test(py::module_& module) {
    py::class_<MeanTest>(module, "MeanTest", "F statistic and p-value of a test of equal means.")
        .def_readonly("statistic", &MeanTest::statistic)
        .def_readonly("log_p_value", &MeanTest::log_p_value)
        .def_readonly("p_value", &MeanTest::p_value);
    module.def(
        "anderson_test",
        [](const Trials& x, const Trials& y, double rounding_variance) {
            check_trials(x);
            check_trials(y);
            return anderson_test(x, y, row_mean(y), rounding_variance);
        },
        py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("rounding_variance"),
        "Test of equal means of the rows of x (T, B) and y (N, B) by Anderson's pairs.");
    module.def(
        "average_test",
        [](const Trials& x, const Trials& y, double rounding_variance) {
            check_trials(x);
            check_trials(y);
            return average_test(x, y, rounding_variance);
        },
        py::arg("x").noconvert(), py::arg("y").noconvert(), py::arg("rounding_variance"),
        "Test of equal means of the rows of x and y (T, B), paired row by row.");
}
