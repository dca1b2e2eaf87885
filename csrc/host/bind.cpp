#include "host/bind.h"

#include <stdexcept>

namespace cvops::host {

Texts texts(const py::sequence& counts) {
  Texts out{py::tuple(counts), {}};
  out.views.reserve(out.owner.size());
  for (const py::handle item : out.owner) {
    char* data = nullptr;
    Py_ssize_t length = 0;
    if (PyBytes_Check(item.ptr())) {
      PyBytes_AsStringAndSize(item.ptr(), &data, &length);
      out.views.emplace_back(data, length);
    } else if (PyUnicode_Check(item.ptr())) {
      const char* text = PyUnicode_AsUTF8AndSize(item.ptr(), &length);
      if (!text) throw py::error_already_set();
      out.views.emplace_back(text, length);
    } else {
      throw std::invalid_argument("counts of mask " + std::to_string(out.views.size()) + " must be bytes or str, got " +
                                  Py_TYPE(item.ptr())->tp_name);
    }
  }
  return out;
}

std::vector<Size> sizes(const Array<int64_t>& array, size_t n) {
  check_shape(array, "sizes", {static_cast<py::ssize_t>(n), 2});
  std::vector<Size> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(checked_size(array.data()[2 * i], array.data()[2 * i + 1]));
  return out;
}

void check_shape(const py::array& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  std::string wanted, got;
  py::ssize_t i = 0;
  for (const py::ssize_t size : shape) {
    wanted += (i ? ", " : "") + (size < 0 ? "any" : std::to_string(size));
    fits = fits && (size < 0 || array.shape(i) == size);
    ++i;
  }
  if (fits) return;
  for (i = 0; i < array.ndim(); ++i) got += (i ? ", " : "") + std::to_string(array.shape(i));
  throw std::invalid_argument(std::string(name) + " must have shape [" + wanted + "], got [" + got + "]");
}

}  // namespace cvops::host
