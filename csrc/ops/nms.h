// Entry of the NMS family: the argument checks that both backends call.
#pragma once

#include <cmath>

#include "ops/common.h"

namespace cvops {

// All take boxes [N, 4], scores [N], idxs [N] int64 or nothing; the padded form has a leading batch dimension.
// They throw on shapes, dtypes, devices and thresholds that do not fit, and return the sizes.
CVOPS_API int64_t check_nms(
    const char* op, const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, double iou_threshold);

struct PaddedSizes {
  int64_t batch, n;
};
CVOPS_API PaddedSizes check_nms_padded(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
    double iou_threshold, int64_t max_output);

// The largest T whose value is at most the threshold: `iou > threshold` is then the same in T as in double.
template <typename T>
T round_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return rounded > threshold ? std::nextafter(rounded, T(-1)) : rounded;
}

enum SoftMethod : int64_t { kLinear = 0, kGaussian = 1 };
CVOPS_API void check_soft(const char* op, int64_t method, double sigma);

}  // namespace cvops
