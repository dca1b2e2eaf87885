// Geometry of a region of interest, shared by the RoI ops and by both backends: the bins and samples of one axis, the
// two pixels that a sample reads, the whole-pixel bins of the pooling ops, the image and the pyramid level of a RoI.
// Everything is per axis; a bin is the product of its two axes. Positions are in pixels of the feature map, and the
// conventions (rounding, borders, clamps) are those of torchvision.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

constexpr int64_t kMaxSamplingRatio = 1 << 15;
constexpr int64_t kMaxAdaptiveGrid = int64_t{1} << 30;  // samples per bin of a RoI a billion pixels long

// Bin p covers start + [p, p + 1) * bin and has `grid` samples, 0 if the RoI is empty or not finite.
template <typename T>
struct RoiAxis {
  T start, bin;
  int64_t grid;
};

// `offset` is half a pixel or 0; `at_least_one` widens the RoI to one pixel; sampling_ratio <= 0 takes about one sample
// per pixel.
template <typename T>
HOST_DEVICE RoiAxis<T> roi_axis(
    T from, T to, T scale, T offset, bool at_least_one, int64_t pooled, int64_t sampling_ratio) {
  RoiAxis<T> axis;
  axis.start = sub_rn(mul_rn(from, scale), offset);
  T size = sub_rn(sub_rn(mul_rn(to, scale), offset), axis.start);
  if (at_least_one && size < T(1)) size = T(1);
  axis.bin = div_rn(size, T(pooled));
  const bool finite = axis.start - axis.start == T(0) && axis.bin - axis.bin == T(0);
  if (!finite) {
    axis.grid = 0;
  } else if (sampling_ratio > 0) {
    axis.grid = sampling_ratio;
  } else if (axis.bin > T(kMaxAdaptiveGrid)) {
    axis.grid = kMaxAdaptiveGrid;
  } else {
    axis.grid = axis.bin > T(0) ? static_cast<int64_t>(std::ceil(axis.bin)) : 0;
  }
  return axis;
}

template <typename T>
HOST_DEVICE T roi_sample(const RoiAxis<T>& axis, int64_t p, int64_t i) {
  const T within = div_rn(mul_rn(add_rn(T(i), T(0.5)), axis.bin), T(axis.grid));
  return add_rn(add_rn(axis.start, mul_rn(T(p), axis.bin)), within);
}

struct IndexRange {
  int64_t first, last;
};

// The samples of bin p that lie on a map of `size` pixels: in [-1, size]. The others count as zero, so a huge RoI costs
// no more than the map that it covers. Positions are monotone in i, also after rounding.
template <typename T>
HOST_DEVICE IndexRange roi_samples(const RoiAxis<T>& axis, int64_t p, int64_t size) {
  if (axis.grid <= 0 || size <= 0) return {0, 0};
  const bool ascending = axis.bin >= T(0);
  // Of the samples [low, high), the first that is past the near end, or past the far end, of the map.
  const auto search = [&](int64_t low, int64_t high, bool near) __attribute__((always_inline)) {
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      const T at = roi_sample(axis, p, middle);
      const bool outside = near == ascending ? at < T(-1) : at > T(size);
      if (outside == near) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const auto outside = [&](T at) __attribute__((always_inline)) { return at < T(-1) || at > T(size); };
  IndexRange range{0, axis.grid};
  if (outside(roi_sample(axis, p, 0))) range.first = search(0, axis.grid, true);
  if (range.first < axis.grid && outside(roi_sample(axis, p, axis.grid - 1))) {
    range.last = search(range.first, axis.grid, false);
  }
  return range;
}

// The pixels beside a sample and what each counts for; one pixel twice at the far border.
template <typename T>
struct RoiPixels {
  int64_t low, high;
  T low_weight, high_weight;
};

template <typename T>
HOST_DEVICE RoiPixels<T> roi_pixels(T at, int64_t size) {
  if (at <= T(0)) at = T(0);
  RoiPixels<T> pixels;
  pixels.low = static_cast<int64_t>(at);
  if (pixels.low >= size - 1) {
    pixels.low = pixels.high = size - 1;
    pixels.high_weight = T(0);
  } else {
    pixels.high = pixels.low + 1;
    pixels.high_weight = at - T(pixels.low);
  }
  pixels.low_weight = T(1) - pixels.high_weight;
  return pixels;
}

// A coordinate rounded to a pixel, halves away from zero. Far beyond any map it is cut off.
template <typename T>
HOST_DEVICE int64_t roi_whole_pixel(T at) {
  constexpr int64_t most = int64_t{1} << 40;
  const T rounded = std::round(at);
  return rounded > T(most) ? most : rounded > T(-most) ? static_cast<int64_t>(rounded) : -most;
}

// Pixels [first, last) of bin p of roi_pool (`inclusive`: the RoI contains its last pixel) and ps_roi_pool (it does
// not, and the last row and column of the map belong to no bin, as in torchvision). Empty for a NaN coordinate.
template <typename T>
HOST_DEVICE IndexRange roi_pool_bin(T from, T to, T scale, bool inclusive, int64_t pooled, int64_t p, int64_t size) {
  const T begin = mul_rn(from, scale), end = mul_rn(to, scale);
  if (begin != begin || end != end) return {0, 0};
  const int64_t start = roi_whole_pixel(begin);
  int64_t extent = roi_whole_pixel(end) - start + (inclusive ? 1 : 0);
  if (extent < 1) extent = 1;
  const T bin = div_rn(T(extent), T(pooled));
  const int64_t limit = inclusive ? size : size - 1;
  const auto clamped = [&](int64_t at) __attribute__((always_inline)) {
    return at < 0 || limit <= 0 ? int64_t{0} : at > limit ? limit : at;
  };
  const int64_t first = static_cast<int64_t>(std::floor(mul_rn(T(p), bin))) + start;
  const int64_t last = static_cast<int64_t>(std::ceil(mul_rn(T(p + 1), bin))) + start;
  return {clamped(first), clamped(last)};
}

// Index of the image, cut off towards zero; -1 if there is no such image.
template <typename T>
HOST_DEVICE int64_t roi_image(T index, int64_t images) {
  if (!(index > T(-1) && index < T(images))) return -1;
  const auto image = static_cast<int64_t>(index);
  return image < images ? image : -1;
}

// The levels that the first and the last scale of a feature pyramid stand for, and the size of box that belongs to one.
struct RoiLevels {
  int64_t lowest, highest, canonical_scale, canonical_level, maps;
};

// floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6), clamped, counted from the lowest level (Lin et
// al., arXiv:1612.03144, eq. 1): the map that a box belongs to. -1 for a negative or NaN area, and for a level between
// scales that has no map. A single map takes every box.
template <typename T>
HOST_DEVICE int64_t roi_level(T x1, T y1, T x2, T y2, const RoiLevels& levels) {
  if (levels.maps == 1) return 0;
  const T side = std::sqrt(mul_rn(sub_rn(x2, x1), sub_rn(y2, y1)));
  const T octaves = std::log2(div_rn(side, T(levels.canonical_scale)));
  T level = std::floor(add_rn(add_rn(T(levels.canonical_level), octaves), T(1e-6)));
  if (level != level) return -1;
  if (level < T(levels.lowest)) level = T(levels.lowest);
  if (level > T(levels.highest)) level = T(levels.highest);
  const int64_t map = static_cast<int64_t>(level) - levels.lowest;
  return map >= 0 && map < levels.maps ? map : -1;
}

}  // namespace cvops
