// Boxes as planes: the SIMD kernels read x1, y1, x2, y2 and the per-box terms as separate arrays in the compute type,
// whatever the dtype of the tensor was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/box_geometry.h"

namespace cvops {

// Pointers into planes of a fixed length; what the -inl.h bodies take.
template <typename T>
struct BoxPlanes {
  const T *x1, *y1, *x2, *y2, *area, *angle;

  HOST_DEVICE Box<T> box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
  HOST_DEVICE BoxTerms<T> terms(int64_t i) const { return {area[i], angle[i]}; }
  BoxPlanes from(int64_t i) const { return {x1 + i, y1 + i, x2 + i, y2 + i, area + i, angle + i}; }
};

// Fills six planes of length `stride` starting at `planes` from n boxes, [n, 4]. Angles are computed on request only,
// one per box instead of one per pair: that is what makes CIoU cheap.
template <typename In, typename T>
BoxPlanes<T> fill_planes(const In* boxes, int64_t n, bool angles, T* planes, int64_t stride) {
  T *x1 = planes, *y1 = x1 + stride, *x2 = y1 + stride, *y2 = x2 + stride, *area = y2 + stride, *angle = area + stride;
  for (int64_t i = 0; i < n; ++i) {
    x1[i] = static_cast<T>(boxes[4 * i]);
    y1[i] = static_cast<T>(boxes[4 * i + 1]);
    x2[i] = static_cast<T>(boxes[4 * i + 2]);
    y2[i] = static_cast<T>(boxes[4 * i + 3]);
  }
  for (int64_t i = 0; i < n; ++i) area[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
  if (angles) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) angle[i] = aspect_angle(x2[i] - x1[i], y2[i] - y1[i]);
  } else {
    std::fill_n(angle, n, T(0));
  }
  return {x1, y1, x2, y2, area, angle};
}

// The same, owning its memory.
template <typename T>
class OwnedPlanes {
 public:
  template <typename In>
  OwnedPlanes(const In* boxes, int64_t n, bool angles)
      : memory_(static_cast<size_t>(6 * n)), planes_(fill_planes(boxes, n, angles, memory_.data(), n)) {}

  const BoxPlanes<T>& planes() const { return planes_; }

 private:
  std::vector<T> memory_;
  BoxPlanes<T> planes_;
};

}  // namespace cvops
