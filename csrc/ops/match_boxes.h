// Entry of match_boxes: the argument checks that both backends call. Geometry is in ops/box_geometry.h.
#pragma once

#include "ops/common.h"

namespace cvops {

struct MatchSizes {
  int64_t batch, n, m;
  bool shared_anchors;  // anchors [1, N, 4] serve every image
};

// Throws on shapes, dtypes, devices and thresholds that do not fit.
CVOPS_API MatchSizes check_match_boxes(
    const Tensor& anchors, const Tensor& targets, const std::optional<Tensor>& valid, double low, double high);

}  // namespace cvops
