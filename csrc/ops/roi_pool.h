// Entry of roi_pool: the argument checks that both backends call. The bins are in ops/roi_geometry.h.
#pragma once

#include "ops/roi.h"

namespace cvops {

CVOPS_API RoiSizes check_roi_pool(
    const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w);
CVOPS_API RoiSizes check_roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax, double scale,
    int64_t pooled_h, int64_t pooled_w, int64_t batch, int64_t channels, int64_t height, int64_t width);

}  // namespace cvops
