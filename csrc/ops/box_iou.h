// Entry of box_iou: the argument checks that both backends call. Geometry is in ops/box_geometry.h.
#pragma once

#include "ops/common.h"

namespace cvops {

struct BoxIouSizes {
  int64_t batch, n, m;
  bool batched;  // [B, N, 4] x [B, M, 4] rather than [N, 4] x [M, 4]
};

// Throws on shapes, dtypes and devices that do not fit.
CVOPS_API BoxIouSizes check_box_iou(const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps);
CVOPS_API BoxIouSizes check_box_iou_backward(
    const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps);

}  // namespace cvops
