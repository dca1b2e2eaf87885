// When an element of a heat map is a peak, for both backends. The order of peaks is by score, descending, then by
// index; -inf and NaN are never peaks and stand in nobody's way.
#pragma once

#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

// Of a heat map, and how many peaks of each image are wanted.
struct PeakSizes {
  int64_t batch, channels, height, width, k;

  HOST_DEVICE int64_t plane() const { return height * width; }
  HOST_DEVICE int64_t image() const { return channels * plane(); }
};

// The planes of a heat map, and the reach of the window to each side.
struct PeakWindow {
  int64_t height, width, radius;
};

// Whether nothing in the window around (y, x), clipped at the border, is larger than `value`, which is that element.
template <typename T, typename S>
HOST_DEVICE bool is_peak(const S* plane, const PeakWindow& w, int64_t y, int64_t x, T value) {
  const int64_t left = larger<int64_t>(x - w.radius, 0), right = smaller(x + w.radius, w.width - 1);
  const int64_t top = larger<int64_t>(y - w.radius, 0), bottom = smaller(y + w.radius, w.height - 1);
  for (int64_t i = top; i <= bottom; ++i) {
    for (int64_t j = left; j <= right; ++j) {
      if (static_cast<T>(plane[i * w.width + j]) > value) return false;
    }
  }
  return true;
}

}  // namespace cvops
