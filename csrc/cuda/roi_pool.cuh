// Kernels of roi_pool. Forward: one thread per bin and channel. Backward: one thread per pixel of the gradient, which
// asks the bins that hold it whether it was the largest (cuda/roi.cuh).
#pragma once

#include "cuda/roi.cuh"

namespace cvops::cuda {

struct RoiPoolShape {
  int64_t n, c, h, w, k, pooled_h, pooled_w;
};

template <bool last, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2) roi_pool_kernel(const S* __restrict__ input,
    const T* __restrict__ rois, RoiPoolShape s, T scale, S* __restrict__ out, int32_t* __restrict__ argmax) {
  const int64_t bins = s.pooled_h * s.pooled_w, total = s.k * s.c * bins;
  for (int64_t i = grid_index(); i < total; i += grid_stride()) {
    const int64_t k = i / (s.c * bins), rest = i % (s.c * bins);
    const int64_t c = last ? rest % s.c : rest / bins, bin = last ? rest / s.c : rest % bins;
    const Roi<T> roi = load_roi(rois, k, s.n);
    T best = 0;
    int64_t at = -1;
    if (roi.image >= 0) {
      const IndexRange rows = roi_pool_bin(roi.y1, roi.y2, scale, true, s.pooled_h, bin / s.pooled_w, s.h);
      const IndexRange columns = roi_pool_bin(roi.x1, roi.x2, scale, true, s.pooled_w, bin % s.pooled_w, s.w);
      const S* from = input + roi.image * s.c * s.h * s.w + (last ? c : c * s.h * s.w);
      for (int64_t y = rows.first; y < rows.last; ++y) {
        for (int64_t x = columns.first; x < columns.last; ++x) {
          const T value = static_cast<T>(from[(y * s.w + x) * (last ? s.c : 1)]);
          if (value > best || (at < 0 && value == value)) best = value, at = y * s.w + x;
        }
      }
    }
    out[i] = static_cast<S>(best);
    argmax[i] = static_cast<int32_t>(at);
  }
}

template <typename Tile, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2) roi_pool_backward_kernel(const S* __restrict__ grad,
    const int32_t* __restrict__ argmax, MapStrides grad_at, const T* __restrict__ rois, RoiPoolShape s, T scale, T most,
    S* __restrict__ out, MapStrides out_at, int64_t tiles) {
  for (int64_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const Tile tile(block, s.c, s.h, s.w);
    T sum[Tile::each] = {};
    const auto meets = [&](int64_t k) {
      const Roi<T> roi = load_roi(rois, k, s.n);
      return roi.image == tile.image &&
             WholeBins<T>{roi.y1, roi.y2, scale, true, s.pooled_h, s.h}.meets(tile.top, tile.top + Tile::height) &&
             WholeBins<T>{roi.x1, roi.x2, scale, true, s.pooled_w, s.w}.meets(tile.left, tile.left + Tile::width);
    };
    for_each_roi(s.k, meets, [&](int64_t k) {
      if (tile.y >= s.h || tile.x >= s.w) return;
      const Roi<T> roi = load_roi(rois, k, s.n);
      const WholeBins<T> down{roi.y1, roi.y2, scale, true, s.pooled_h, s.h};
      const WholeBins<T> right{roi.x1, roi.x2, scale, true, s.pooled_w, s.w};
      const auto here = static_cast<int32_t>(tile.y * s.w + tile.x);
      for (int64_t p = 0; p < s.pooled_h; ++p) {
        if (!down.holds(p, tile.y)) continue;
        for (int64_t q = 0; q < s.pooled_w; ++q) {
          if (!right.holds(q, tile.x)) continue;
          const int64_t from = k * grad_at.image + p * grad_at.row + q * grad_at.pixel;
#pragma unroll
          for (int j = 0; j < Tile::each; ++j) {
            const int64_t c = tile.channel + j * Tile::lanes, at = from + c * grad_at.channel;
            if (c < s.c && argmax[at] == here) sum[j] += static_cast<T>(grad[at]);
          }
        }
      }
    });
    if (tile.y < s.h && tile.x < s.w) {
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
