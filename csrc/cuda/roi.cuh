// What the kernels of the RoI ops share: RoIs, how much a pixel counts in a bin, and gradient maps, of which a block
// owns a tile and goes through the RoIs in order. Gradients are gathered, so they need no atomics and are
// deterministic.
#pragma once

#include "cuda/device.cuh"
#include "ops/roi_geometry.h"

namespace cvops::cuda {

constexpr int kRoiThreads = 256;

// Blocks that a multiprocessor has registers for.
template <typename T>
constexpr int kRoiBlocks = sizeof(T) == 8 ? 2 : 3;

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
  T share;  // of a sample in the average

  __device__ SampledBins(
      T from, T to, T scale, T offset, bool at_least_one, int64_t pooled, int64_t sampling_ratio, int64_t size_)
      : axis(roi_axis(from, to, scale, offset, at_least_one, pooled, sampling_ratio)),
        bins(pooled),
        size(size_),
        share(T(1) / T(axis.grid)) {
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
    return sum * share;
  }

  // The samples of bin p, and the pixels of one with what they count for in the average.
  __device__ IndexRange samples(int64_t p) const { return roi_samples(axis, p, size); }
  __device__ RoiPixels<T> pixels(int64_t p, int64_t i) const {
    RoiPixels<T> beside = roi_pixels(roi_sample(axis, p, i), size);
    beside.low_weight *= share, beside.high_weight *= share;
    return beside;
  }

  // Sum of value(pixel) times its weight over bin p.
  template <typename Value>
  __device__ void average(int64_t p, const Value& value) const {
    const IndexRange all = samples(p);
    for (int64_t i = all.first; i < all.last; ++i) {
      const RoiPixels<T> beside = pixels(p, i);
      value(beside.low, beside.low_weight);
      value(beside.high, beside.high_weight);
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
  __device__ IndexRange near(int64_t) const { return {0, bins}; }
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

// What a block gathers: 8 x 4 pixels and 128 channels of one image (64 in double precision, for the sake of registers).
// Each of its 8 warps has four pixels of a row, each lane four channels, a warp apart.
template <typename T>
struct GatherTile {
  static constexpr int width = 8, height = 4, pixels = 4, each = sizeof(T) == 8 ? 2 : 4, lines = height + width;
  int64_t image, channel;  // channel: the first of this lane
  int top, left;           // a map has fewer than 2^31 pixels

  __device__ GatherTile(int64_t block, int64_t c, int64_t h, int64_t w) {
    const int64_t across = (w + width - 1) / width, down = (h + height - 1) / height;
    const int64_t groups = (c + kWarp * each - 1) / (kWarp * each);
    left = static_cast<int>(block % across) * width, block /= across;
    top = static_cast<int>(block % down) * height, block /= down;
    channel = block % groups * kWarp * each + lane();
    image = block / groups;
  }
  __device__ int row() const { return warp() * pixels / width; }     // of this warp, in the tile
  __device__ int column() const { return warp() * pixels % width; }  // its first
  static int64_t count(int64_t n, int64_t c, int64_t h, int64_t w) {
    const auto parts = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    return n * parts(c, kWarp * each) * parts(h, height) * parts(w, width);
  }
};

// How much each line of a tile, its rows and then its columns, counts in up to 16 bins of an axis of a RoI.
template <typename T>
struct LineWeights {
  static constexpr int bins = 16;
  T at[GatherTile<T>::lines][bins];
  int first[GatherTile<T>::lines], last[GatherTile<T>::lines];  // the bins that are not 0 lie in [first, last)

  template <typename Axis>
  __device__ void fill(int line, const Axis& axis, int64_t pixel, int64_t first_bin) {
    const IndexRange near = axis.near(pixel);
    int low = bins, high = 0;
    for (int b = 0; b < bins; ++b) {
      const int64_t p = first_bin + b;
      const T weight = p >= near.first && p < near.last ? axis.weight(p, pixel) : T(0);
      at[line][b] = weight;
      if (weight == T(0)) continue;
      low = b < low ? b : low;
      high = b + 1;
    }
    first[line] = low, last[line] = high;
  }

  // The bins of the pixels of a warp, from this column.
  __device__ IndexRange bins_of(int column) const {
    IndexRange all{bins, 0};
#pragma unroll
    for (int i = 0; i < GatherTile<T>::pixels; ++i) {
      all.first = first[column + i] < all.first ? first[column + i] : all.first;
      all.last = last[column + i] > all.last ? last[column + i] : all.last;
    }
    return all;
  }
};

// For every RoI k with is_of_map(k) that meets the tile, in order: body(k, weights, p, q), where the weights are those
// of the tile's lines in bins p + [0, 16) of axes(k).down and q + [0, 16) of axes(k).right. All threads of the block
// take part.
template <typename T, typename IsOfMap, typename Axes, typename Body>
__device__ __forceinline__ void gather_rois(const GatherTile<T>& tile, int64_t count, int64_t pooled_h,
    int64_t pooled_w, const IsOfMap& is_of_map, const Axes& axes, const Body& body) {
  constexpr int at_once = sizeof(T) == 8 ? 8 : 16, lines = GatherTile<T>::lines, bins = LineWeights<T>::bins;
  static_assert(at_once * lines <= kRoiThreads, "one thread per line");
  CVOPS_SHARED(int, found, kRoiThreads);
  CVOPS_SHARED(LineWeights<T>, weights, at_once);
  for (int64_t first = 0; first < count; first += kRoiThreads) {
    const int64_t k = first + threadIdx.x;
    bool hit = k < count && is_of_map(k);
    if (hit) {
      const auto both = axes(k);
      hit = both.down.meets(tile.top, tile.top + GatherTile<T>::height) &&
            both.right.meets(tile.left, tile.left + GatherTile<T>::width);
    }
    const ScannedSum sum = block_scan<kRoiThreads>(hit);
    if (hit) found[sum.before] = static_cast<int>(threadIdx.x);
    __syncthreads();
    for (int from = 0; from < sum.total; from += at_once) {
      const int some = sum.total - from < at_once ? sum.total - from : at_once;
      for (int64_t p = 0; p < pooled_h; p += bins) {
        for (int64_t q = 0; q < pooled_w; q += bins) {
          const int roi = static_cast<int>(threadIdx.x) / lines, line = static_cast<int>(threadIdx.x) % lines;
          if (roi < some) {
            const auto both = axes(first + found[from + roi]);
            if (line < GatherTile<T>::height) {
              weights[roi].fill(line, both.down, tile.top + line, p);
            } else {
              weights[roi].fill(line, both.right, tile.left + line - GatherTile<T>::height, q);
            }
          }
          __syncthreads();
          for (int i = 0; i < some; ++i) body(first + found[from + i], weights[i], p, q);
          __syncthreads();
        }
      }
    }
    __syncthreads();
  }
}

// The two axes of a RoI.
template <typename Axis>
struct RoiAxes {
  Axis down, right;
};

// Stores what the lanes of a tile gathered, sum[pixel][channel], into maps [n, c, h, w]; `last`: channels_last. A plane
// is written by rows of eight pixels, so the sums change lanes in between.
template <bool last, typename S, typename T>
__device__ __forceinline__ void store_tile(const GatherTile<T>& tile,
    const T (&sum)[GatherTile<T>::pixels][GatherTile<T>::each], T most, int64_t c, int64_t h, int64_t w,
    S* __restrict__ out) {
  const int y = tile.top + tile.row(), x = tile.left + tile.column();
  if constexpr (last) {
#pragma unroll
    for (int i = 0; i < GatherTile<T>::pixels; ++i) {
      if (y >= h || x + i >= w) break;
      S* to = out + ((tile.image * h + y) * w + x + i) * c;
#pragma unroll
      for (int j = 0; j < GatherTile<T>::each; ++j) {
        const int64_t at = tile.channel + j * kWarp;
        if (at < c) to[at] = static_cast<S>(saturated(sum[i][j], most));
      }
    }
  } else {
    CVOPS_SHARED(T, turned, kWarp * (kWarp + 1));
    const int pixel = tile.row() * GatherTile<T>::width + tile.column();
    const int to_y = tile.top + lane() / GatherTile<T>::width, to_x = tile.left + lane() % GatherTile<T>::width;
#pragma unroll
    for (int j = 0; j < GatherTile<T>::each; ++j) {
#pragma unroll
      for (int i = 0; i < GatherTile<T>::pixels; ++i) turned[lane() * (kWarp + 1) + pixel + i] = sum[i][j];
      __syncthreads();
      for (int from = warp(); from < kWarp; from += kRoiThreads / kWarp) {
        const int64_t at = tile.channel - lane() + j * kWarp + from;
        if (at < c && to_y < h && to_x < w) {
          out[((tile.image * c + at) * h + to_y) * w + to_x] =
              static_cast<S>(saturated(turned[from * (kWarp + 1) + lane()], most));
        }
      }
      __syncthreads();
    }
  }
}

}  // namespace cvops::cuda
