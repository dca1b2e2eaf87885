// Kernels of roi_align and multiscale_roi_align. Forward: one thread per bin and channel (NCHW) or per bin and 16 bytes
// of channels (channels_last). Backward: one thread per pixel of the gradient (cuda/roi.cuh), a launch per level.
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

// N channels that lie together, if `last`; else N is 1.
template <bool last, int N, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2)
    roi_align_kernel(RoiMaps<S, T> maps, const T* __restrict__ rois, RoiAlignShape s, S* __restrict__ out) {
  const int64_t bins = s.pooled_h * s.pooled_w, groups = s.c / N, total = s.k * groups * bins;
  for (int64_t i = grid_index(); i < total; i += grid_stride()) {
    const int64_t k = i / (groups * bins), rest = i % (groups * bins);
    const int64_t c = (last ? rest % groups : rest / bins) * N, bin = last ? rest / groups : rest % bins;
    const Roi<T> roi = load_roi(rois, k, s.n);
    const int64_t level = roi_level(roi.x1, roi.y1, roi.x2, roi.y2, s.levels);
    T sum[N] = {};
    if (roi.image >= 0 && level >= 0) {
      const RoiMapOf<S, T> map = maps.at[level];
      const SampledBins<T> down = align_bins(s, roi.y1, roi.y2, map.scale, s.pooled_h, map.h);
      const SampledBins<T> right = align_bins(s, roi.x1, roi.x2, map.scale, s.pooled_w, map.w);
      const S* from = map.data + roi.image * s.c * map.h * map.w + (last ? c : c * map.h * map.w);
      const int64_t pixel = last ? s.c : 1, row = map.w * pixel;
      down.average(bin / s.pooled_w, [&](int64_t y, T wy) {
        right.average(bin % s.pooled_w, [&](int64_t x, T wx) {
          const Pack<S, N> value = load_pack<N>(from + y * row + x * pixel);
#pragma unroll
          for (int j = 0; j < N; ++j) sum[j] += wy * wx * static_cast<T>(value.at[j]);
        });
      });
    }
    Pack<S, N> stored;
#pragma unroll
    for (int j = 0; j < N; ++j) stored.at[j] = static_cast<S>(sum[j]);
    store_pack<N>(out + i * N, stored);
  }
}

// The gradient of one map, [n, c, h, w].
template <typename Tile, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2) roi_align_backward_kernel(const S* __restrict__ grad,
    MapStrides grad_at, const T* __restrict__ rois, RoiAlignShape s, int64_t level, T scale, int64_t h, int64_t w,
    T most, S* __restrict__ out, MapStrides out_at, int64_t tiles) {
  for (int64_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const Tile tile(block, s.c, h, w);
    T sum[Tile::each] = {};
    const auto axes = [&](const Roi<T>& roi, auto&& use) {
      return use(
          align_bins(s, roi.y1, roi.y2, scale, s.pooled_h, h), align_bins(s, roi.x1, roi.x2, scale, s.pooled_w, w));
    };
    const auto meets = [&](int64_t k) {
      const Roi<T> roi = load_roi(rois, k, s.n);
      if (roi.image != tile.image || roi_level(roi.x1, roi.y1, roi.x2, roi.y2, s.levels) != level) return false;
      return axes(roi, [&](const SampledBins<T>& down, const SampledBins<T>& right) {
        return down.meets(tile.top, tile.top + Tile::height) && right.meets(tile.left, tile.left + Tile::width);
      });
    };
    for_each_roi(s.k, meets, [&](int64_t k) {
      if (tile.y >= h || tile.x >= w) return;
      axes(load_roi(rois, k, s.n), [&](const SampledBins<T>& down, const SampledBins<T>& right) {
        const IndexRange rows = down.near(tile.y), columns = right.near(tile.x);
        for (int64_t p = rows.first; p < rows.last; ++p) {
          const T vertical = down.weight(p, tile.y);
          if (vertical == T(0)) continue;
          for (int64_t q = columns.first; q < columns.last; ++q) {
            const T weight = vertical * right.weight(q, tile.x);
            if (weight == T(0)) continue;
            const S* from = grad + k * grad_at.image + p * grad_at.row + q * grad_at.pixel;
#pragma unroll
            for (int j = 0; j < Tile::each; ++j) {
              const int64_t c = tile.channel + j * Tile::lanes;
              if (c < s.c) sum[j] += weight * static_cast<T>(from[c * grad_at.channel]);
            }
          }
        }
      });
    });
    if (tile.y < h && tile.x < w) {
      S* to = out + tile.image * out_at.image + tile.y * out_at.row + tile.x * out_at.pixel;
#pragma unroll
      for (int j = 0; j < Tile::each; ++j) {
        const int64_t c = tile.channel + j * Tile::lanes;
        if (c < s.c) to[c * out_at.channel] = static_cast<S>(saturated(sum[j], most));
      }
    }
  }
}

}  // namespace cvops::cuda
