// Entry of depthwise_conv2d: the argument checks that both backends call, and the geometry of one axis, which is the
// same for the convolution and for the gradient of its input.
#pragma once

#include "ops/activation.h"
#include "ops/host_device.h"
#include "ops/memory_format.h"

namespace cvops {

// Which gradients are wanted; what is not wanted comes back empty.
enum DepthwiseGradient : int64_t { kGradInput = 1, kGradWeight = 2, kGradBias = 4 };

// Input [n, c, h, w], weight [c * m, 1, kh, kw], output [n, c * m, out_h, out_w]; output channel i reads input channel
// i / m. Padding is per side.
struct DepthwiseSizes {
  int64_t n, c, m, h, w, kh, kw, out_h, out_w;
  int64_t stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w;
  bool channels_last;  // the layout of the input, which the output follows
};

// A set of positions along one axis that share their taps. Target positions first + j * step, j < count, read source
// positions j * stride + base + i * tap_step (zero if outside) times weights weight_first + i * weight_step, i < taps.
struct AxisPhase {
  int64_t first, step, count, stride, base, taps, tap_step, weight_first, weight_step;
};

// The convolution itself: one phase.
HOST_DEVICE AxisPhase forward_phase(int64_t out, int64_t kernel, int64_t stride, int64_t before, int64_t dilation) {
  return {0, 1, out, stride, -before, kernel, dilation, 0, 1};
}

// The gradient of the input at the positions that are `phase` modulo stride, as a correlation over the gradient of the
// output: tap k of position x reads (x + before - k * dilation) / stride, where that is whole. Taps run backwards so
// that sources ascend. taps may be 0.
HOST_DEVICE AxisPhase backward_phase(
    int64_t phase, int64_t in, int64_t kernel, int64_t stride, int64_t before, int64_t dilation) {
  int64_t divisor = stride;  // gcd(stride, dilation)
  for (int64_t other = dilation; other != 0;) {
    const int64_t rest = divisor % other;
    divisor = other, other = rest;
  }
  const int64_t every = stride / divisor;  // taps of this phase are tap, tap + every, ...
  int64_t tap = 0;
  while (tap < every && tap < kernel && (phase + before - tap * dilation) % stride != 0) ++tap;
  const int64_t count = phase < in ? (in - phase + stride - 1) / stride : 0;
  if (tap == every || tap == kernel) return {phase, stride, count, 1, 0, 0, 1, 0, 1};
  const int64_t taps = (kernel - tap + every - 1) / every, last = tap + (taps - 1) * every;
  return {phase, stride, count, 1, (phase + before - last * dilation) / stride, taps, every * dilation / stride, last,
      -every};
}

// Throw on shapes, dtypes, devices and numbers that do not fit. `padding` is top, left, bottom, right.
CVOPS_API DepthwiseSizes check_depthwise_conv2d(const Tensor& input, const Tensor& weight,
    const std::optional<Tensor>& bias, const IntList& stride, const IntList& padding, const IntList& dilation,
    int64_t activation);
CVOPS_API DepthwiseSizes check_depthwise_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
    const IntList& stride, const IntList& padding, const IntList& dilation, int64_t gradients);

}  // namespace cvops
