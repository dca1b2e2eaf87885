// Geometry of a deformable convolution, shared by the backends: where a tap samples the input and what the four pixels
// around that point contribute to its value and to its derivatives.
#pragma once

#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

// The pixels around a sampling point, in the order upper left, upper right, lower left, lower right. `pixel` is
// y * width + x, or -1 outside of the input, where everything counts as zero. The sample is sum(weight * value), its
// derivatives by the point's coordinates are sum(by_y * value) and sum(by_x * value).
template <typename T>
struct DeformCorners {
  int64_t pixel[4];
  T weight[4], by_y[4], by_x[4];
};

// A point at or beyond one pixel from the border (or NaN) has no pixel at all.
template <typename T>
HOST_DEVICE DeformCorners<T> deform_corners(T y, T x, int64_t height, int64_t width) {
  DeformCorners<T> corners{{-1, -1, -1, -1}, {}, {}, {}};
  if (!(y > T(-1) && y < T(height) && x > T(-1) && x < T(width))) return corners;
  int64_t row = static_cast<int64_t>(y), column = static_cast<int64_t>(x);  // towards zero
  row -= T(row) > y, column -= T(column) > x;
  const T down = y - T(row), right = x - T(column), up = T(1) - down, left = T(1) - right;
  const bool above = row >= 0, below = row + 1 < height, before = column >= 0, after = column + 1 < width;
  const int64_t first = row * width + column;
  if (above && before) {
    corners.pixel[0] = first, corners.weight[0] = up * left, corners.by_y[0] = -left, corners.by_x[0] = -up;
  }
  if (above && after) {
    corners.pixel[1] = first + 1, corners.weight[1] = up * right, corners.by_y[1] = -right, corners.by_x[1] = up;
  }
  if (below && before) {
    corners.pixel[2] = first + width, corners.weight[2] = down * left, corners.by_y[2] = left, corners.by_x[2] = -down;
  }
  if (below && after) {
    corners.pixel[3] = first + width + 1, corners.weight[3] = down * right;
    corners.by_y[3] = right, corners.by_x[3] = down;
  }
  return corners;
}

// Input [n, c, h, w], weight [out_c, c / groups, kh, kw], offset [n, offset_groups * kh * kw * 2, out_h, out_w] with y
// before x, mask [n, offset_groups * kh * kw, out_h, out_w]. Input and output pixels are stored channels last here.
struct DeformShape {
  int64_t n, c, h, w, out_c, kh, kw, out_h, out_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups;

  HOST_DEVICE int64_t taps() const { return kh * kw; }
  HOST_DEVICE int64_t positions() const { return out_h * out_w; }
  HOST_DEVICE int64_t group_in() const { return c / groups; }
  HOST_DEVICE int64_t group_out() const { return out_c / groups; }
  HOST_DEVICE int64_t offset_group_in() const { return c / offset_groups; }
};

// Index of the mask of tap k of offset group `og` at position p; its offset is at twice the plane: `deform_offset`.
HOST_DEVICE int64_t deform_mask(const DeformShape& s, int64_t image, int64_t og, int64_t k, int64_t p) {
  return ((image * s.offset_groups + og) * s.taps() + k) * s.positions() + p;
}
HOST_DEVICE int64_t deform_offset(const DeformShape& s, int64_t image, int64_t og, int64_t k, int64_t p) {
  return 2 * ((image * s.offset_groups + og) * s.taps() + k) * s.positions() + p;
}

// Corners of tap k at output position p.
template <typename T, typename In>
HOST_DEVICE DeformCorners<T> deform_tap(
    const DeformShape& s, const In* offset, int64_t image, int64_t og, int64_t k, int64_t p) {
  const int64_t at = deform_offset(s, image, og, k, p);
  const int64_t row = p / s.out_w * s.stride_h - s.pad_h + k / s.kw * s.dilation_h;
  const int64_t column = p % s.out_w * s.stride_w - s.pad_w + k % s.kw * s.dilation_w;
  const T y = T(row) + static_cast<T>(offset[at]), x = T(column) + static_cast<T>(offset[at + s.positions()]);
  return deform_corners(y, x, s.h, s.w);
}

}  // namespace cvops
