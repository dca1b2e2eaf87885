// What the body of deform_conv2d works on, filled in by cpu/deform_conv2d.cpp. Everything is in the compute type, and
// pixels are stored channels last, so that a sample is four runs of channels.
#pragma once

#include "ops/deform_geometry.h"

namespace cvops {

// Matrices are multiplied against panels of this many columns, 192 bytes: three registers of AVX-512, six of AVX2.
template <typename T>
inline constexpr int64_t kPanel = 192 / sizeof(T);

// Channels [begin, end) of the input that share a group and an offset group.
struct DeformSegment {
  int64_t begin, end, group, offset_group;
};

template <typename T>
struct DeformJob {
  DeformShape shape;
  const T *input, *offset, *mask;  // mask: null for v1
  const T* zeros;                  // [c], read in place of pixels outside of the input
};

// Forward: `tile` output positions of one image at a time. Scratch of a thread holds, in elements, the sampled columns
// (for each group [tile, kh * kw * c / groups]) and the products [tile, width].
template <typename T>
struct DeformForward {
  DeformJob<T> job;
  const DeformSegment* segments;
  int64_t segment_count, tile, tiles, width;  // width: out_c / groups, rounded up to panels
  const T* packed;                            // per group: [panels, kh * kw * c / groups, kPanel]
  const T* bias;                              // [groups, width]
  T* out;                                     // [n, out_c, positions] or, channels_last, [n, positions, out_c]
  bool channels_last;
};

// Backward: one segment of at most kDeformBlock channels at a time, over all images and positions in order. Null
// pointers: not wanted.
inline constexpr int64_t kDeformBlock = 16;
template <typename T>
struct DeformBackward {
  DeformJob<T> job;
  const DeformSegment* segments;
  int64_t tile, width;                    // width: kh * kw * kDeformBlock, rounded up to panels
  const T *grad, *weight;                 // [n, positions, out_c]; [out_c, c / groups, kh * kw]
  T *grad_input, *grad_weight, *partial;  // like input; like weight; [segments, n, kh * kw, 3 (y, x, mask), positions]
};

}  // namespace cvops
