// Schema and argument checks of match_boxes: the best target of each anchor and the best anchor of each target, per
// image. Ranks without a batch, counts and dtypes are in cvops/ops/match_boxes.py.
#include "ops/match_boxes.h"

#include <limits>

namespace cvops {

MatchSizes check_match_boxes(
    const Tensor& anchors, const Tensor& targets, const std::optional<Tensor>& valid, double low, double high) {
  constexpr const char* op = "match_boxes";
  CVOPS_CHECK(low >= 0 && low <= high, op, ": thresholds must be 0 <= low <= high, got low ", low, " and high ", high);
  CVOPS_CHECK(targets.dim() == 3 && targets.size(2) == 4, op, ": targets must be [B, M, 4], got ", shape_of(targets));
  const int64_t batch = targets.size(0), m = targets.size(1);
  CVOPS_CHECK(anchors.dim() == 3 && anchors.size(2) == 4 && (anchors.size(0) == 1 || anchors.size(0) == batch), op,
      ": anchors must be [1, N, 4] or [", batch, ", N, 4], got ", shape_of(anchors));
  CVOPS_CHECK(m <= std::numeric_limits<int32_t>::max(), op, ": at most 2^31 - 1 targets, got ", m);
  check_floating(op, "anchors", anchors);
  check_same_kind(op, "anchors", anchors, "targets", targets);
  if (valid) {
    CVOPS_CHECK(valid->dim() == 2 && valid->size(0) == batch && valid->size(1) == m, op, ": valid must be [", batch,
        ", ", m, "], got ", shape_of(*valid));
    CVOPS_CHECK(valid->scalar_type() == ScalarType::Bool, op, ": valid must be bool, got ",
        torch::headeronly::toString(valid->scalar_type()));
    CVOPS_CHECK(valid->device() == targets.device(), op, ": valid and targets must be on one device");
  }
  return {batch, anchors.size(1), m, anchors.size(0) == 1};
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "match_boxes(Tensor anchors, Tensor targets, Tensor? valid, float low, float high, bool allow_low_quality) -> "
      "(Tensor, Tensor, Tensor)");
}
