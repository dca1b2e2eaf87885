// Entry of deform_conv2d: the argument checks that both backends call. Geometry is in ops/deform_geometry.h.
#pragma once

#include "ops/deform_geometry.h"
#include "ops/memory_format.h"

#include <torch/csrc/stable/ops.h>

namespace cvops {

// Which gradients are wanted; what is not wanted comes back empty. The bias is left to the caller: it is a sum.
enum DeformGradient : int64_t { kDeformInput = 1, kDeformWeight = 2, kDeformOffset = 4 };  // offset: and mask

// Throw on shapes, dtypes, devices and numbers that do not fit.
CVOPS_API DeformShape check_deform_conv2d(const Tensor& input, const Tensor& weight, const Tensor& offset,
    const std::optional<Tensor>& mask, const std::optional<Tensor>& bias, const IntList& stride, const IntList& padding,
    const IntList& dilation, int64_t groups, int64_t offset_groups);
CVOPS_API DeformShape check_deform_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
    const Tensor& offset, const std::optional<Tensor>& mask, const IntList& stride, const IntList& padding,
    const IntList& dilation, int64_t groups, int64_t offset_groups, int64_t gradients);

}  // namespace cvops
