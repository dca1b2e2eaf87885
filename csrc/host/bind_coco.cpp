// Python's access to the COCO evaluation: columns of numpy arrays in, the three curves out.
#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>

#include "host/bind.h"
#include "host/coco_evaluate.h"

namespace cvops::host {

namespace {

static_assert(sizeof(Box) == 4 * sizeof(double));  // boxes [n, 4] are read in place

// The arrays behind an Instances, kept alive while the interpreter is unlocked.
struct Columns {
  Array<int32_t> image, category;
  Array<double> boxes;
  std::optional<Texts> masks;
  std::optional<Array<double>> area;
};

void check_indices(const Array<int32_t>& indices, const std::string& name, size_t n, size_t below) {
  check_shape(indices, name.c_str(), {static_cast<py::ssize_t>(n)});
  for (size_t i = 0; i < n; ++i) {
    if (indices.data()[i] < 0 || static_cast<size_t>(indices.data()[i]) >= below) {
      throw std::invalid_argument(name + " must be in 0 to " + std::to_string(below) + " - 1, got " +
                                  std::to_string(indices.data()[i]) + " at " + std::to_string(i));
    }
  }
}

// `shapes`: boxes [n, 4] as x, y, width, height, or n texts.
Columns columns(const std::string& name, const Array<int32_t>& image, const Array<int32_t>& category,
    const py::object& shapes, const std::optional<Array<double>>& area, size_t images, size_t categories,
    Instances& instances) {
  Columns out{image, category, {}, {}, area};
  const auto count = static_cast<size_t>(image.size());
  if (count > std::numeric_limits<int32_t>::max()) throw std::invalid_argument(name + " has more than 2^31 instances");
  check_indices(image, name + "_image", count, images);
  check_indices(category, name + "_category", count, categories);
  instances.count = count, instances.image = image.data(), instances.category = category.data();
  if (py::isinstance<py::array>(shapes)) {
    out.boxes = shapes.cast<Array<double>>();
    check_shape(out.boxes, (name + "_shapes").c_str(), {static_cast<py::ssize_t>(count), 4});
    instances.boxes = reinterpret_cast<const Box*>(out.boxes.data());
  } else {
    out.masks = texts(shapes.cast<py::sequence>());
    if (out.masks->views.size() != count) throw std::invalid_argument(name + "_shapes must have one mask an instance");
    instances.masks = out.masks->views.data();
  }
  if (area) {
    check_shape(*area, (name + "_area").c_str(), {static_cast<py::ssize_t>(count)});
    instances.area = area->data();
  }
  return out;
}

py::tuple evaluate(size_t categories, size_t images, const std::optional<Array<int64_t>>& image_sizes,
    const Array<int32_t>& truth_image, const Array<int32_t>& truth_category, const py::object& truth_shapes,
    const Array<double>& truth_area, const Array<uint8_t>& truth_crowd, const Array<uint8_t>& truth_ignore,
    const Array<int32_t>& found_image, const Array<int32_t>& found_category, const py::object& found_shapes,
    const Array<double>& found_score, const std::optional<Array<double>>& found_area,
    std::vector<double> iou_thresholds, std::vector<double> recall_thresholds,
    const std::vector<std::pair<double, double>>& area_ranges, std::vector<int64_t> max_detections, int threads) {
  GroundTruth truth;
  Detections found;
  const Columns truth_columns =
      columns("truth", truth_image, truth_category, truth_shapes, truth_area, images, categories, truth);
  const Columns found_columns =
      columns("found", found_image, found_category, found_shapes, found_area, images, categories, found);
  check_shape(truth_crowd, "truth_crowd", {truth_image.size()});
  check_shape(truth_ignore, "truth_ignore", {truth_image.size()});
  check_shape(found_score, "found_score", {found_image.size()});
  truth.crowd = truth_crowd.data(), truth.ignore = truth_ignore.data(), found.score = found_score.data();
  const bool masks = truth_columns.masks.has_value();
  if (masks != found_columns.masks.has_value()) {
    throw std::invalid_argument("truth_shapes and found_shapes must both be boxes or both be masks");
  }
  if (masks && !image_sizes) throw std::invalid_argument("masks need image_sizes");
  const std::vector<Size> size = masks ? sizes(*image_sizes, images) : std::vector<Size>{};
  for (size_t i = 0; i < found.count; ++i) {
    if (std::isnan(found.score[i])) throw std::invalid_argument("found_score is not a number at " + std::to_string(i));
  }
  if (iou_thresholds.empty() || area_ranges.empty() || max_detections.empty()) {
    throw std::invalid_argument("iou_thresholds, area_ranges and max_detections must not be empty");
  }
  for (const double threshold : iou_thresholds) {
    if (std::isnan(threshold)) throw std::invalid_argument("iou_thresholds must be numbers");
  }
  for (const double threshold : recall_thresholds) {
    if (!(threshold >= 0 && threshold <= 1)) throw std::invalid_argument("recall_thresholds must be in 0 to 1");
  }
  for (size_t m = 0; m < max_detections.size(); ++m) {
    if (max_detections[m] < (m ? max_detections[m - 1] : 1)) {
      throw std::invalid_argument("max_detections must be at least 1 and ascend");
    }
  }
  Settings settings{
      std::move(iou_thresholds), std::move(recall_thresholds), {}, std::move(max_detections), categories, threads};
  for (const auto& [low, high] : area_ranges) settings.area_ranges.push_back({low, high});

  const auto t = static_cast<py::ssize_t>(settings.iou_thresholds.size());
  const auto r = static_cast<py::ssize_t>(settings.recall_thresholds.size());
  const auto k = static_cast<py::ssize_t>(categories), a = static_cast<py::ssize_t>(area_ranges.size());
  const auto m = static_cast<py::ssize_t>(settings.max_detections.size());
  Array<double> precision({t, r, k, a, m}), scores({t, r, k, a, m}), recall({t, k, a, m});
  const Curves curves{precision.mutable_data(), scores.mutable_data(), recall.mutable_data()};
  {
    const py::gil_scoped_release unlocked;
    coco_evaluate(settings, truth, found, images, size.data(), curves);
  }
  return py::make_tuple(precision, recall, scores);
}

}  // namespace

void bind_coco(py::module_& module) {
  using py::arg;
  module.def("coco_evaluate", evaluate, py::kw_only(), arg("categories"), arg("images"), arg("image_sizes"),
      arg("truth_image"), arg("truth_category"), arg("truth_shapes"), arg("truth_area"), arg("truth_crowd"),
      arg("truth_ignore"), arg("found_image"), arg("found_category"), arg("found_shapes"), arg("found_score"),
      arg("found_area"), arg("iou_thresholds"), arg("recall_thresholds"), arg("area_ranges"), arg("max_detections"),
      arg("threads"), "Precision [T, R, K, A, M], recall [T, K, A, M] and scores [T, R, K, A, M], as in pycocotools.");
}

}  // namespace cvops::host
