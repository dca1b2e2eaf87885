// Python's access to run-length encoded masks: lists of COCO's compressed counts in and out.
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "host/bind.h"
#include "host/parallel.h"
#include "host/polygon.h"

namespace cvops::host {

namespace {

// Calls `work(i)`, and says in its errors which mask they are about.
template <typename Work>
void for_each_mask(size_t n, const Work& work) {
  for (size_t i = 0; i < n; ++i) {
    try {
      work(i);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("mask " + std::to_string(i) + ": " + error.what());
    }
  }
}

std::vector<Runs> parse_all(const Texts& masks, Size size) {
  std::vector<Runs> runs(masks.views.size());
  for_each_mask(runs.size(), [&](size_t i) { parse_counts(masks.views[i], size.pixels(), runs[i]); });
  return runs;
}

py::list rle_encode(const Array<uint8_t>& masks, int threads) {
  check_shape(masks, "masks", {-1, -1, -1});
  const Size size = checked_size(masks.shape(1), masks.shape(2));
  std::vector<std::string> encoded(masks.shape(0));
  {
    const py::gil_scoped_release unlocked;
    const uint8_t* data = masks.data();
    parallel_for(encoded.size(), threads, [&] {
      return [&](size_t i) { encoded[i] = format_counts(view(encode(data + i * size.pixels(), size)), size.pixels()); };
    });
  }
  py::list out;
  for (const std::string& text : encoded) out.append(py::bytes(text));
  return out;
}

Array<uint8_t> rle_decode(const py::sequence& counts, int64_t height, int64_t width) {
  const Size size = checked_size(height, width);
  const std::vector<Runs> masks = parse_all(texts(counts), size);
  Array<uint8_t> out({static_cast<py::ssize_t>(masks.size()), py::ssize_t{height}, py::ssize_t{width}});
  uint8_t* data = out.mutable_data();
  std::fill_n(data, masks.size() * size.pixels(), uint8_t{0});
  for (size_t i = 0; i < masks.size(); ++i) decode(view(masks[i]), size, data + i * size.pixels());
  return out;
}

Array<int64_t> rle_area(const py::sequence& counts, const Array<int64_t>& mask_sizes) {
  const Texts masks = texts(counts);
  const std::vector<Size> size = sizes(mask_sizes, masks.views.size());
  Array<int64_t> out(static_cast<py::ssize_t>(size.size()));
  int64_t* data = out.mutable_data();
  Runs runs;
  for_each_mask(size.size(), [&](size_t i) {
    runs.clear();
    parse_counts(masks.views[i], size[i].pixels(), runs);
    data[i] = area(view(runs));
  });
  return out;
}

Array<double> rle_boxes(const py::sequence& counts, const Array<int64_t>& mask_sizes) {
  const Texts masks = texts(counts);
  const std::vector<Size> size = sizes(mask_sizes, masks.views.size());
  Array<double> out({static_cast<py::ssize_t>(size.size()), py::ssize_t{4}});
  double* data = out.mutable_data();
  Runs runs;
  for_each_mask(size.size(), [&](size_t i) {
    runs.clear();
    parse_counts(masks.views[i], size[i].pixels(), runs);
    const Box box = bounding_box(view(runs), size[i].height);
    data[4 * i] = box.x, data[4 * i + 1] = box.y, data[4 * i + 2] = box.width, data[4 * i + 3] = box.height;
  });
  return out;
}

Array<double> rle_iou(const py::sequence& found_counts, const py::sequence& truth_counts, const Array<uint8_t>& crowd,
    int64_t height, int64_t width) {
  const Size size = checked_size(height, width);
  const std::vector<Runs> found = parse_all(texts(found_counts), size), truth = parse_all(texts(truth_counts), size);
  check_shape(crowd, "crowd", {static_cast<py::ssize_t>(truth.size())});
  Array<double> out({static_cast<py::ssize_t>(found.size()), static_cast<py::ssize_t>(truth.size())});
  double* data = out.mutable_data();
  std::vector<uint32_t> truth_area;
  std::vector<Box> truth_box;
  for (const Runs& mask : truth) {
    truth_area.push_back(area(view(mask)));
    truth_box.push_back(bounding_box(view(mask), size.height));
  }
  for (const Runs& mask : found) {
    const uint32_t found_area = area(view(mask));
    const Box box = bounding_box(view(mask), size.height);
    for (size_t g = 0; g < truth.size(); ++g) {
      const bool meet = box_iou(box, truth_box[g], false) > 0;
      const uint32_t inner = meet ? intersection_area(view(mask), view(truth[g])) : 0;
      *data++ = mask_iou(inner, found_area, truth_area[g], crowd.data()[g]);
    }
  }
  return out;
}

py::bytes rle_merge(const py::sequence& counts, int64_t height, int64_t width, bool intersection) {
  const Size size = checked_size(height, width);
  const std::vector<Runs> masks = parse_all(texts(counts), size);
  if (masks.empty()) throw std::invalid_argument("masks must hold at least one mask");
  if (!intersection) return format_counts(view(unite(masks)), size.pixels());
  Runs common = masks[0];
  for (const Runs& mask : masks) common = intersect(view(common), view(mask));
  return format_counts(view(common), size.pixels());
}

py::bytes rle_from_polygons(const py::sequence& polygons, int64_t height, int64_t width) {
  const Size size = checked_size(height, width);
  std::vector<Runs> parts(polygons.size());
  std::vector<double> xy;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string name = "polygon " + std::to_string(i);
    xy.clear();
    for (const py::handle number : py::reinterpret_borrow<py::object>(polygons[i])) {
      xy.push_back(PyFloat_AsDouble(number.ptr()));
      if (PyErr_Occurred()) throw py::error_already_set();
    }
    if (xy.size() % 2)
      throw std::invalid_argument(name + " must hold pairs of numbers, got " + std::to_string(xy.size()));
    try {
      parts[i] = polygon_runs(xy.data(), xy.size() / 2, size);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(name + ": " + error.what());
    }
  }
  return format_counts(view(unite(parts)), size.pixels());
}

py::bytes rle_from_counts(const std::vector<int64_t>& counts, int64_t height, int64_t width) {
  const Size size = checked_size(height, width);
  return format_counts(view(from_counts(counts.data(), counts.size(), size.pixels())), size.pixels());
}

}  // namespace

void bind_rle(py::module_& module) {
  using py::arg;
  module.def(
      "rle_encode", rle_encode, arg("masks"), arg("threads") = 1, "Compressed counts of masks [N, H, W] of 0 and 1.");
  module.def("rle_decode", rle_decode, arg("counts"), arg("height"), arg("width"), "Masks [N, H, W] of 0 and 1.");
  module.def("rle_area", rle_area, arg("counts"), arg("sizes"), "Pixels of each mask, [N].");
  module.def("rle_boxes", rle_boxes, arg("counts"), arg("sizes"), "x, y, width, height of each mask, [N, 4].");
  module.def("rle_iou", rle_iou, arg("found"), arg("truth"), arg("crowd"), arg("height"), arg("width"),
      "IoU of each found mask with each true one, [N, M]; over the found mask's size where the true one is a crowd.");
  module.def("rle_merge", rle_merge, arg("counts"), arg("height"), arg("width"), arg("intersection") = false,
      "Union, or intersection, of masks.");
  module.def("rle_from_polygons", rle_from_polygons, arg("polygons"), arg("height"), arg("width"),
      "Union of polygons, each x, y, x, y, ...");
  module.def("rle_from_counts", rle_from_counts, arg("counts"), arg("height"), arg("width"),
      "Compressed counts from COCO's uncompressed ones.");
}

}  // namespace cvops::host
