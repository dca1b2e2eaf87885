// Entry of ps_roi_align: the argument checks that both backends call. Position-sensitive: bin (i, j) of output channel
// c reads input channel (c * pooled_h + i) * pooled_w + j; a bin averages bilinear samples.
#pragma once

#include "ops/roi.h"

namespace cvops {

CVOPS_API RoiSizes check_ps_roi_align(
    const Tensor& input, const Tensor& rois, double scale, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio);
CVOPS_API RoiSizes check_ps_roi_align_backward(const Tensor& grad, const Tensor& rois, const Tensor& channel_mapping,
    double scale, int64_t pooled_h, int64_t pooled_w, int64_t sampling_ratio, int64_t batch, int64_t channels,
    int64_t height, int64_t width);

}  // namespace cvops
