// Entry of mask_paste: the argument checks that both backends call. Geometry is in ops/paste_geometry.h.
#pragma once

#include "ops/common.h"
#include "ops/paste_geometry.h"

namespace cvops {

// They throw on shapes, dtypes, devices and sizes that do not fit.
CVOPS_API PasteSizes check_mask_paste(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width);
CVOPS_API PasteSizes check_mask_paste_backward(
    const Tensor& grad, const Tensor& boxes, int64_t mask_height, int64_t mask_width);

}  // namespace cvops
