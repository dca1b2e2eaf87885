// Entries of roi_align and multiscale_roi_align: the argument checks that both backends call. One map is a pyramid of
// one level, so both ops are one computation.
#pragma once

#include <vector>

#include "ops/roi.h"
#include "ops/roi_geometry.h"

namespace cvops {

constexpr int64_t kMaxLevels = 16;

struct RoiMap {
  int64_t h, w;
  double scale;
};

// What a call computes: output [k, c, pooled_h, pooled_w] from maps [n, c, h, w].
struct RoiAlign {
  int64_t n, c, k, pooled_h, pooled_w, sampling_ratio;
  bool aligned;
  std::vector<RoiMap> maps;
  RoiLevels levels;
  int64_t bins() const { return pooled_h * pooled_w; }
};

CVOPS_API RoiAlign check_roi_align(const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h,
    int64_t pooled_w, int64_t sampling_ratio, bool aligned);
CVOPS_API RoiAlign check_roi_align_backward(const Tensor& grad, const Tensor& rois, double scale, int64_t pooled_h,
    int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio,
    bool aligned);
CVOPS_API RoiAlign check_multiscale_roi_align(const std::vector<Tensor>& features, const Tensor& rois,
    const std::vector<double>& scales, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, bool aligned,
    int64_t canonical_scale, int64_t canonical_level);
CVOPS_API RoiAlign check_multiscale_roi_align_backward(const Tensor& grad, const Tensor& rois,
    const std::vector<double>& scales, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, bool aligned,
    int64_t canonical_scale, int64_t canonical_level, int64_t batch, const std::vector<int64_t>& heights,
    const std::vector<int64_t>& widths);

}  // namespace cvops
