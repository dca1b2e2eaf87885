// Argument checks that the RoI ops share: feature map, RoIs, size of the output.
#pragma once

#include "ops/memory_format.h"

namespace cvops {

// Input [n, c, h, w], RoIs [k, 5], output [k, c, pooled_h, pooled_w] (the position-sensitive ops: c / (pooled_h *
// pooled_w) channels).
struct RoiSizes {
  int64_t n, c, h, w, k, pooled_h, pooled_w;
  int64_t bins() const { return pooled_h * pooled_w; }
};

CVOPS_API RoiSizes check_roi_forward(
    const char* op, const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w);
// `channels` is of the input, `grad_channels` what that makes for grad.
CVOPS_API RoiSizes check_roi_backward(const char* op, const Tensor& grad, const Tensor& rois, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width,
    int64_t grad_channels);
CVOPS_API void check_sampling_ratio(const char* op, int64_t sampling_ratio);
// Channels of the output of a position-sensitive op.
CVOPS_API int64_t position_sensitive_channels(const char* op, int64_t channels, int64_t pooled_h, int64_t pooled_w);
// The second output of an op ([k, c, pooled_h, pooled_w], int32) as it comes back to its gradient.
CVOPS_API void check_roi_indices(const char* op, const char* name, const Tensor& indices, const Tensor& grad);

}  // namespace cvops
