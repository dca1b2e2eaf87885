// Entry of heatmap_peaks: the argument checks that both backends call. Geometry is in ops/peak_geometry.h.
#pragma once

#include "ops/common.h"
#include "ops/peak_geometry.h"

namespace cvops {

// They throw on shapes, dtypes, devices and numbers that do not fit, and return the sizes.
CVOPS_API PeakSizes check_heatmap_peaks(const Tensor& heatmap, int64_t k, int64_t kernel);
CVOPS_API PeakSizes check_heatmap_peaks_backward(const Tensor& grad, const Tensor& classes, const Tensor& ys,
    const Tensor& xs, int64_t channels, int64_t height, int64_t width);

}  // namespace cvops
