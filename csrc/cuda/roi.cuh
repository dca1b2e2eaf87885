// What the kernels of the RoI ops share: RoIs, tiles of a gradient map that go through the RoIs in order, and how much
// a pixel counts in a bin. Gradients are gathered, pixel by pixel, so they need no atomics and are deterministic.
#pragma once

#include "cuda/device.cuh"
#include "ops/roi_geometry.h"

namespace cvops::cuda {

constexpr int kRoiThreads = 256;

template <typename T>
struct Roi {
  int64_t image;  // -1: there is no such image
  T x1, y1, x2, y2;
};

template <typename T>
__device__ __forceinline__ Roi<T> load_roi(const T* __restrict__ rois, int64_t k, int64_t images) {
  const T* roi = rois + 5 * k;
  return {roi_image(roi[0], images), roi[1], roi[2], roi[3], roi[4]};
}

// Maps or bins, [n, c, h, w]: element (y, x) of channel c of image n.
struct MapStrides {
  int64_t image, channel, row, pixel;
};

// A block owns a tile of pixels of one image and some channels: Lanes threads per pixel, Each channels per thread,
// Lanes apart. NCHW: one lane; channels_last: a warp along the channels.
template <int Width, int Height, int Lanes, int Each>
struct Tile {
  static_assert(Width * Height * Lanes == kRoiThreads, "one thread per pixel and lane");
  static constexpr int each = Each, lanes = Lanes, width = Width, height = Height;
  int64_t image, channel, y, x;  // of this thread; first channel
  int64_t top, left;             // of the block

  __device__ Tile(int64_t block, int64_t c, int64_t h, int64_t w) {
    const int64_t across = (w + Width - 1) / Width, down = (h + Height - 1) / Height;
    const int64_t groups = (c + Lanes * Each - 1) / (Lanes * Each);
    left = block % across * Width, block /= across;
    top = block % down * Height, block /= down;
    channel = block % groups * Lanes * Each + threadIdx.x % Lanes;
    image = block / groups;
    x = left + threadIdx.x / Lanes % Width;
    y = top + threadIdx.x / (Lanes * Width);
  }
};
template <typename Tile>
int64_t tiles_of(int64_t n, int64_t c, int64_t h, int64_t w) {
  const auto parts = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  return n * parts(c, Tile::lanes * Tile::each) * parts(h, Tile::height) * parts(w, Tile::width);
}
using PlaneTile = Tile<16, 16, 1, 8>;
using PixelTile = Tile<4, 2, kWarp, 4>;

// body(k) for every RoI k with test(k), in order; all threads of the block take part.
template <typename Test, typename Body>
__device__ __forceinline__ void for_each_roi(int64_t count, const Test& test, const Body& body) {
  CVOPS_SHARED(int, found, kRoiThreads);
  for (int64_t first = 0; first < count; first += kRoiThreads) {
    const int64_t k = first + threadIdx.x;
    const bool hit = k < count && test(k);
    const ScannedSum sum = block_scan<kRoiThreads>(hit);
    if (hit) found[sum.before] = static_cast<int>(threadIdx.x);
    __syncthreads();
    for (int i = 0; i < sum.total; ++i) body(first + found[i]);
    __syncthreads();
  }
}

// Indices i in [0, n) for which from + i * step may lie within a pixel, and `slack`, of `at`.
template <typename T>
__device__ __forceinline__ IndexRange indices_near(T from, T step, int64_t at, T slack, int64_t n) {
  if (step == T(0)) return {0, n};
  T a = (T(at) - T(1) - slack - from) / step, b = (T(at) + T(1) + slack - from) / step;
  if (a > b) {
    const T swap = a;
    a = b, b = swap;
  }
  if (!(b >= T(-1)) || !(a < T(n))) return {0, 0};
  return {a <= T(0) ? 0 : static_cast<int64_t>(a), b >= T(n - 1) ? n : static_cast<int64_t>(b + T(1)) + 1};
}

// An axis whose bins average bilinear samples.
template <typename T>
struct SampledBins {
  RoiAxis<T> axis;
  int64_t bins, size;
  T slack;  // more than the rounding of any position

  __device__ SampledBins(
      T from, T to, T scale, T offset, bool at_least_one, int64_t pooled, int64_t sampling_ratio, int64_t size_)
      : axis(roi_axis(from, to, scale, offset, at_least_one, pooled, sampling_ratio)), bins(pooled), size(size_) {
    constexpr T epsilon = sizeof(T) == 4 ? T(1e-6) : T(2e-15);
    slack = (std::abs(axis.start) + std::abs(axis.bin) * T(pooled) + T(size)) * epsilon;
  }

  // Whether pixels [first, last) count at all.
  __device__ bool meets(int64_t first, int64_t last) const {
    if (axis.grid <= 0) return false;
    const T end = axis.start + axis.bin * T(bins), low = end < axis.start ? end : axis.start;
    const T high = end < axis.start ? axis.start : end;
    return low - T(1) - slack <= T(last) && high + T(1) + slack >= T(first);
  }

  __device__ IndexRange near(int64_t at) const { return indices_near(axis.start, axis.bin, at, slack, bins); }

  // How much pixel `at` counts in bin p.
  __device__ T weight(int64_t p, int64_t at) const {
    const T step = axis.bin / T(axis.grid);
    const IndexRange samples = indices_near(axis.start + T(p) * axis.bin + T(0.5) * step, step, at, slack, axis.grid);
    T sum = 0;
    for (int64_t i = samples.first; i < samples.last; ++i) {
      const T position = roi_sample(axis, p, i);
      if (position < T(-1) || position > T(size)) continue;
      const RoiPixels<T> pixels = roi_pixels(position, size);
      if (pixels.low == at) sum += pixels.low_weight;
      if (pixels.high == at) sum += pixels.high_weight;
    }
    return sum / T(axis.grid);
  }

  // Sum of value(pixel) times its weight over bin p.
  template <typename Value>
  __device__ void average(int64_t p, const Value& value) const {
    const IndexRange samples = roi_samples(axis, p, size);
    for (int64_t i = samples.first; i < samples.last; ++i) {
      const RoiPixels<T> pixels = roi_pixels(roi_sample(axis, p, i), size);
      value(pixels.low, pixels.low_weight / T(axis.grid));
      value(pixels.high, pixels.high_weight / T(axis.grid));
    }
  }
};

// An axis whose bins average whole pixels, or hold their largest.
template <typename T>
struct WholeBins {
  T from, to, scale;
  bool inclusive;
  int64_t bins, size;

  __device__ IndexRange bin(int64_t p) const { return roi_pool_bin(from, to, scale, inclusive, bins, p, size); }
  __device__ bool meets(int64_t first, int64_t last) const { return bin(0).first < last && bin(bins - 1).last > first; }
  __device__ bool holds(int64_t p, int64_t at) const {
    const IndexRange pixels = bin(p);
    return at >= pixels.first && at < pixels.last;
  }
  __device__ T weight(int64_t p, int64_t at) const {
    const IndexRange pixels = bin(p);
    return at >= pixels.first && at < pixels.last ? T(1) / T(pixels.last - pixels.first) : T(0);
  }
  template <typename Value>
  __device__ void average(int64_t p, const Value& value) const {
    const IndexRange pixels = bin(p);
    for (int64_t at = pixels.first; at < pixels.last; ++at) value(at, T(1) / T(pixels.last - pixels.first));
  }
};

}  // namespace cvops::cuda
