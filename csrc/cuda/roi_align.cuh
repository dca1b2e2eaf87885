// Kernels of roi_align and multiscale_roi_align. Forward: one thread per bin and several channels, which lie together
// (channels_last) or a plane apart. Backward: one block per tile of the gradient (cuda/roi.cuh), a launch per level.
#pragma once

#include "cuda/roi.cuh"

namespace cvops::cuda {

constexpr int kRoiMaps = 16;  // kMaxLevels of ops/roi_align.h

template <typename S, typename T>
struct RoiMapOf {
  const S* data;
  int64_t h, w;
  T scale;
};

template <typename S, typename T>
struct RoiMaps {
  RoiMapOf<S, T> at[kRoiMaps];
};

struct RoiAlignShape {
  int64_t n, c, k, pooled_h, pooled_w, sampling_ratio;
  bool aligned;
  RoiLevels levels;
};

template <typename T>
__device__ __forceinline__ SampledBins<T> align_bins(
    const RoiAlignShape& s, T from, T to, T scale, int64_t pooled, int64_t size) {
  return SampledBins<T>(from, to, scale, s.aligned ? T(0.5) : T(0), !s.aligned, pooled, s.sampling_ratio, size);
}

template <typename T>
__device__ __forceinline__ RoiAxes<SampledBins<T>> align_axes(
    const RoiAlignShape& s, const Roi<T>& roi, T scale, int64_t h, int64_t w) {
  return {align_bins(s, roi.y1, roi.y2, scale, s.pooled_h, h), align_bins(s, roi.x1, roi.x2, scale, s.pooled_w, w)};
}

// N channels of a bin: neighbours if `last`, where N divides c; else planes, and the channels are the slowest index, so
// that the cache holds the planes that are being read.
template <bool last, int N, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2)
    roi_align_kernel(RoiMaps<S, T> maps, const T* __restrict__ rois, RoiAlignShape s, S* __restrict__ out) {
  const int64_t bins = s.pooled_h * s.pooled_w, groups = (s.c + N - 1) / N, total = s.k * groups * bins;
  for (int64_t i = grid_index(); i < total; i += grid_stride()) {
    const int64_t group = last ? i % groups : i / (s.k * bins), of_roi = last ? i / groups : i % (s.k * bins);
    const int64_t k = of_roi / bins, bin = of_roi % bins, c = group * N;
    const Roi<T> roi = load_roi(rois, k, s.n);
    const int64_t level = roi_level(roi.x1, roi.y1, roi.x2, roi.y2, s.levels);
    T sum[N] = {};
    if (roi.image >= 0 && level >= 0) {
      const RoiMapOf<S, T> map = maps.at[level];
      const auto axes = align_axes(s, roi, map.scale, map.h, map.w);
      const int64_t plane = map.h * map.w, pixel = last ? s.c : 1, row = map.w * pixel;
      const S* from = map.data + roi.image * s.c * plane + (last ? c : c * plane);
      const int64_t p = bin / s.pooled_w, q = bin % s.pooled_w;
      const auto add = [&](const S* at, T weight) {
        if constexpr (last) {
          const Pack<S, N> value = load_pack<N>(at);
#pragma unroll
          for (int j = 0; j < N; ++j) sum[j] = multiply_add(weight, static_cast<T>(value.at[j]), sum[j]);
        } else {
#pragma unroll
          for (int j = 0; j < N; ++j) {
            if (c + j < s.c) sum[j] = multiply_add(weight, static_cast<T>(at[j * plane]), sum[j]);
          }
        }
      };
      const IndexRange lines = axes.down.samples(p), columns = axes.right.samples(q);
      for (int64_t line = lines.first; line < lines.last; ++line) {
        const RoiPixels<T> y = axes.down.pixels(p, line);
        for (int64_t column = columns.first; column < columns.last; ++column) {
          const RoiPixels<T> x = axes.right.pixels(q, column);
          add(from + y.low * row + x.low * pixel, y.low_weight * x.low_weight);
          add(from + y.low * row + x.high * pixel, y.low_weight * x.high_weight);
          add(from + y.high * row + x.low * pixel, y.high_weight * x.low_weight);
          add(from + y.high * row + x.high * pixel, y.high_weight * x.high_weight);
        }
      }
    }
    if constexpr (last) {
      Pack<S, N> stored;
#pragma unroll
      for (int j = 0; j < N; ++j) stored.at[j] = static_cast<S>(sum[j]);
      store_pack<N>(out + i * N, stored);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (c + j < s.c) out[(k * s.c + c + j) * bins + bin] = static_cast<S>(sum[j]);
      }
    }
  }
}

// The gradient of one map, [n, c, h, w], channels_last if `last`; grad: [k, pooled_h, pooled_w, c].
template <bool last, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    roi_align_backward_kernel(const S* __restrict__ grad, const T* __restrict__ rois, RoiAlignShape s, int64_t level,
        T scale, int64_t h, int64_t w, T most, S* __restrict__ out, int64_t tiles) {
  for (int64_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const GatherTile<T> tile(block, s.c, h, w);
    const int row = tile.row(), column = GatherTile<T>::height + tile.column();
    T sum[GatherTile<T>::pixels][GatherTile<T>::each] = {};
    const auto axes = [&](int64_t k) { return align_axes(s, load_roi(rois, k, s.n), scale, h, w); };
    const auto is_of_map = [&](int64_t k) {
      const Roi<T> roi = load_roi(rois, k, s.n);
      return roi.image == tile.image && roi_level(roi.x1, roi.y1, roi.x2, roi.y2, s.levels) == level;
    };
    gather_rois<T>(tile, s.k, s.pooled_h, s.pooled_w, is_of_map, axes,
        [&](int64_t k, const LineWeights<T>& weights, int64_t first_p, int64_t first_q) {
          if (weights.first[row] >= weights.last[row]) return;
          const IndexRange columns = weights.bins_of(column);
          for (int p = weights.first[row]; p < weights.last[row]; ++p) {
            for (int64_t q = columns.first; q < columns.last; ++q) {
              const S* from = grad + ((k * s.pooled_h + first_p + p) * s.pooled_w + first_q + q) * s.c;
              T value[GatherTile<T>::each];
#pragma unroll
              for (int j = 0; j < GatherTile<T>::each; ++j) {
                const int64_t c = tile.channel + j * kWarp;
                value[j] = c < s.c ? static_cast<T>(from[c]) : T(0);
              }
#pragma unroll
              for (int i = 0; i < GatherTile<T>::pixels; ++i) {
                const T weight = weights.at[row][p] * weights.at[column + i][q];
                if (weight == T(0)) continue;
#pragma unroll
                for (int j = 0; j < GatherTile<T>::each; ++j) sum[i][j] = multiply_add(weight, value[j], sum[i][j]);
              }
            }
          }
        });
    store_tile<last>(tile, sum, most, s.c, h, w, out);
  }
}

}  // namespace cvops::cuda
