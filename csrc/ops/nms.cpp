// Schemas and argument checks of the NMS family. Groups are compared by id, never by offset coordinates.
#include "ops/nms.h"

#include <limits>

namespace cvops {
namespace {

void check_tensors(
    const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t lead) {
  const char* of = lead == 1 ? "[N, 4]" : "[B, N, 4]";
  CVOPS_CHECK(boxes.dim() == lead + 1 && boxes.size(lead) == 4, op, ": boxes must be ", of, ", got ", shape_of(boxes));
  bool fits = scores.dim() == lead;
  for (int64_t i = 0; fits && i < lead; ++i) fits = scores.size(i) == boxes.size(i);
  CVOPS_CHECK(fits, op, ": scores must have one value per box of ", shape_of(boxes), ", got ", shape_of(scores));
  CVOPS_CHECK(boxes.size(lead - 1) < std::numeric_limits<int32_t>::max(), op, ": at most 2^31 - 2 boxes, got ",
      boxes.size(lead - 1));
  check_floating(op, "boxes", boxes);
  check_floating(op, "scores", scores);
  CVOPS_CHECK(boxes.device() == scores.device(), op, ": boxes and scores must be on one device");
  if (idxs.has_value()) {
    CVOPS_CHECK(same_shape(*idxs, scores), op, ": idxs must have the shape of scores ", shape_of(scores), ", got ",
        shape_of(*idxs));
    CVOPS_CHECK(idxs->scalar_type() == ScalarType::Long, op, ": idxs must be int64, got ",
        torch::headeronly::toString(idxs->scalar_type()));
    CVOPS_CHECK(idxs->device() == boxes.device(), op, ": idxs and boxes must be on one device");
  }
}

void check_threshold(const char* op, double iou_threshold) {
  CVOPS_CHECK(iou_threshold >= 0 && iou_threshold <= 1, op, ": iou_threshold must be in [0, 1], got ", iou_threshold);
}

}  // namespace

int64_t check_nms(const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    double iou_threshold) {
  check_tensors(op, boxes, scores, idxs, 1);
  check_threshold(op, iou_threshold);
  return boxes.size(0);
}

PaddedSizes check_nms_padded(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    double iou_threshold, int64_t max_output) {
  check_tensors("nms_padded", boxes, scores, idxs, 2);
  check_threshold("nms_padded", iou_threshold);
  CVOPS_CHECK(max_output >= 0, "nms_padded: max_output must be >= 0, got ", max_output);
  return {boxes.size(0), boxes.size(1)};
}

void check_soft(const char* op, int64_t method, double sigma) {
  CVOPS_CHECK(method == kLinear || method == kGaussian, op, ": method must be 0 or 1, got ", method);
  CVOPS_CHECK(sigma > 0, op, ": sigma must be > 0, got ", sigma);
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor");
  m.def(
      "nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, int max_output, "
      "float? score_threshold) -> (Tensor, Tensor)");
  m.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? idxs, int method, float sigma, float iou_threshold, "
      "float score_threshold) -> (Tensor, Tensor)");
  m.def("matrix_nms(Tensor boxes, Tensor scores, Tensor? idxs, int method, float sigma) -> Tensor");
}
