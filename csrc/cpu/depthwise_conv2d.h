// What the two bodies of depthwise_conv2d work on, filled in by cpu/depthwise_conv2d.cpp: a correlation of planes (the
// convolution, or the gradient of its input) and the gradient of the weight. Axes are AxisPhase
// (ops/depthwise_conv2d.h).
#pragma once

#include "ops/depthwise_conv2d.h"

namespace cvops {

// target[n, i] = activation(bias[i] + sum of taps over the sources of i). Each of the n * groups items owns `sources`
// source planes and `targets` target planes, one of which is 1; weight plane g * max(sources, targets) + k belongs to
// the k-th pair of group g.
template <typename T>
struct Correlation {
  int64_t n, groups, sources, targets;
  int64_t source_h, source_w, target_h, target_w;
  const AxisPhase *rows, *columns;
  int64_t row_phases, column_phases;
  const T* weight;  // NCHW: [planes, kh, kw]; NHWC: [kh, kw, planes]
  int64_t kh, kw;
  const T* bias;  // [targets of all groups] or null
  int64_t activation;
  bool prefetch;  // NHWC: the tensors are larger than the caches nearby
};

// How a plane is cut into strips and laid out in scratch memory, NCHW only. A source row is stored as `stride`
// interleaved phases of `phase_pitch`, so that neighbours of one phase are adjacent; column x is number
// (x + left) % stride, place (x + left) / stride.
struct StripLayout {
  int64_t strip_rows, strips;                                            // rows of the target per strip
  int64_t left, used_columns, phase_pitch, pitch, source_rows, columns;  // columns: of one phase of the target, padded
  int64_t line_offset, target_offset, size;  // in elements of scratch memory: one row, then the strip of the target
};

// grad_weight[o, ky, kx] = sum over n, y, x of grad[n, o, y, x] * source[n, o / m, ...].
struct WeightGradient {
  int64_t n, groups, targets;  // groups: input channels; targets: m
  int64_t source_h, source_w, grad_h, grad_w;
  AxisPhase rows, columns;
  int64_t kh, kw;
};

}  // namespace cvops
