// Kernels of roi_pool. Forward: one thread per bin and several channels, which lie together (channels_last) or a plane
// apart. Backward: one block per tile of the gradient, whose pixels ask the bins that hold them whether they were the
// largest (cuda/roi.cuh).
#pragma once

#include "cuda/roi.cuh"

namespace cvops::cuda {

struct RoiPoolShape {
  int64_t n, c, h, w, k, pooled_h, pooled_w;
};

// N channels of a bin: neighbours if `last`, where N divides c; else planes, and the channels are the slowest index, so
// that the cache holds the planes that are being read.
template <bool last, int N, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>) roi_pool_kernel(const S* __restrict__ input,
    const T* __restrict__ rois, RoiPoolShape s, T scale, S* __restrict__ out, int32_t* __restrict__ argmax) {
  const int64_t bins = s.pooled_h * s.pooled_w, groups = (s.c + N - 1) / N, total = s.k * groups * bins;
  const int64_t plane = s.h * s.w;
  for (int64_t i = grid_index(); i < total; i += grid_stride()) {
    const int64_t group = last ? i % groups : i / (s.k * bins), of_roi = last ? i / groups : i % (s.k * bins);
    const int64_t k = of_roi / bins, bin = of_roi % bins, c = group * N;
    const int channels = last || s.c - c > N ? N : static_cast<int>(s.c - c);
    const Roi<T> roi = load_roi(rois, k, s.n);
    T best[N] = {};
    int32_t at[N];
#pragma unroll
    for (int j = 0; j < N; ++j) at[j] = -1;
    if (roi.image >= 0) {
      const IndexRange rows = roi_pool_bin(roi.y1, roi.y2, scale, true, s.pooled_h, bin / s.pooled_w, s.h);
      const IndexRange columns = roi_pool_bin(roi.x1, roi.x2, scale, true, s.pooled_w, bin % s.pooled_w, s.w);
      const S* map = input + roi.image * s.c * plane + (last ? c : c * plane);
      for (int64_t y = rows.first; y < rows.last; ++y) {
        auto here = static_cast<int32_t>(y * s.w + columns.first);
        const auto end = static_cast<int32_t>(y * s.w + columns.last);
        const S* from = map + here * (last ? s.c : 1);
        for (; here < end; ++here, from += last ? s.c : 1) {
          Pack<S, N> value;
          if constexpr (last) {
            value = load_pack<N>(from);
          } else {
#pragma unroll
            for (int j = 0; j < N; ++j) value.at[j] = j < channels ? from[j * plane] : S(0);
          }
#pragma unroll
          for (int j = 0; j < N; ++j) {
            const T found = static_cast<T>(value.at[j]);
            if (found > best[j] || (at[j] < 0 && found == found)) best[j] = found, at[j] = here;
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (j >= channels) break;
      const int64_t to = last ? i * N + j : (k * s.c + c + j) * bins + bin;
      out[to] = static_cast<S>(best[j]);
      argmax[to] = at[j];
    }
  }
}

// The gradient, channels_last if `last`; grad and argmax: [k, pooled_h, pooled_w, c].
template <bool last, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>)
    roi_pool_backward_kernel(const S* __restrict__ grad, const int32_t* __restrict__ argmax, const T* __restrict__ rois,
        RoiPoolShape s, T scale, T most, S* __restrict__ out, int64_t tiles) {
  for (int64_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const GatherTile<T> tile(block, s.c, s.h, s.w);
    const int row = tile.row(), column = GatherTile<T>::height + tile.column();
    const auto here = static_cast<int32_t>((tile.top + row) * s.w + tile.left + tile.column());
    T sum[GatherTile<T>::pixels][GatherTile<T>::each] = {};
    const auto axes = [&](int64_t k) {
      const Roi<T> roi = load_roi(rois, k, s.n);
      return RoiAxes<WholeBins<T>>{
          {roi.y1, roi.y2, scale, true, s.pooled_h, s.h}, {roi.x1, roi.x2, scale, true, s.pooled_w, s.w}};
    };
    const auto is_of_map = [&](int64_t k) { return load_roi(rois, k, s.n).image == tile.image; };
    gather_rois<T>(tile, s.k, s.pooled_h, s.pooled_w, is_of_map, axes,
        [&](int64_t k, const LineWeights<T>& weights, int64_t first_p, int64_t first_q) {
          if (weights.first[row] >= weights.last[row]) return;
          const IndexRange columns = weights.bins_of(column);
          for (int p = weights.first[row]; p < weights.last[row]; ++p) {
            for (int64_t q = columns.first; q < columns.last; ++q) {
              const int64_t from = ((k * s.pooled_h + first_p + p) * s.pooled_w + first_q + q) * s.c;
#pragma unroll
              for (int j = 0; j < GatherTile<T>::each; ++j) {
                const int64_t c = tile.channel + j * kWarp;
                if (c >= s.c) break;
                const int32_t largest = argmax[from + c];
                const T value = static_cast<T>(grad[from + c]);
#pragma unroll
                for (int i = 0; i < GatherTile<T>::pixels; ++i) sum[i][j] += largest == here + i ? value : T(0);
              }
            }
          }
        });
    store_tile<last>(tile, sum, most, s.c, s.h, s.w, out);
  }
}

}  // namespace cvops::cuda
