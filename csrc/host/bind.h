// The parts of the pybind11 module, and how they take arguments. Checks that protect memory are made here, whoever
// calls; what a user can get wrong is checked once more, with a better message, in cvops/metrics.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <string_view>
#include <vector>

#include "host/rle.h"

namespace cvops::host {

namespace py = pybind11;

void bind_rle(py::module_& module);
void bind_coco(py::module_& module);

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Texts of masks, kept alive and unchanged while the interpreter is unlocked.
struct Texts {
  py::tuple owner;
  std::vector<std::string_view> views;
};
Texts texts(const py::sequence& counts);

// [n, 2], height and width of each of n masks or images.
std::vector<Size> sizes(const Array<int64_t>& array, size_t n);

// Throws std::invalid_argument "name must have shape [...], got [...]" unless it has; -1 stands for any size.
void check_shape(const py::array& array, const char* name, std::initializer_list<py::ssize_t> shape);

}  // namespace cvops::host
