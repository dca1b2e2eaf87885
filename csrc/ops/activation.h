// Activations that a kernel can apply to what it is about to write. The vector form is in cpu/activation-inl.h, the
// CUDA form in cuda/activation.cuh.
#pragma once

#include <cstdint>

namespace cvops {

// The order is that of ACTIVATIONS in cvops/ops/depthwise_conv2d.py.
enum Activation : int64_t { kNoActivation, kRelu, kRelu6, kSilu, kHardswish, kActivations };

}  // namespace cvops
