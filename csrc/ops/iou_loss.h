// Entry of iou_loss: the argument checks that both backends call. Geometry is in ops/box_geometry.h.
#pragma once

#include "ops/common.h"

namespace cvops {

// Throws on shapes, dtypes and devices that do not fit; returns the number of pairs.
CVOPS_API int64_t check_iou_loss(const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps);
CVOPS_API int64_t check_iou_loss_backward(
    const Tensor& grad, const Tensor& boxes1, const Tensor& boxes2, int64_t metric, double eps);

}  // namespace cvops
