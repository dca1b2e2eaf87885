// Entry of mask_paste: the argument checks that both backends call. Geometry is in ops/paste_geometry.h.
#pragma once

#include "ops/common.h"
#include "ops/paste_geometry.h"

namespace cvops {

struct PasteSizes {
  int64_t k, mask_h, mask_w, height, width;

  int64_t mask() const { return mask_h * mask_w; }
  int64_t image() const { return height * width; }
};

// They throw on shapes, dtypes, devices and sizes that do not fit.
CVOPS_API PasteSizes check_mask_paste(const Tensor& masks, const Tensor& boxes, int64_t height, int64_t width);
CVOPS_API PasteSizes check_mask_paste_backward(
    const Tensor& grad, const Tensor& boxes, int64_t mask_height, int64_t mask_width);

}  // namespace cvops
