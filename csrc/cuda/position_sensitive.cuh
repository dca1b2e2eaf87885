// Kernels that ps_roi_align and ps_roi_pool share; they differ in the axes of a RoI. Forward: one thread per bin and
// output channel. Backward: one block per tile of the gradient (cuda/roi.cuh), where neighbouring channels belong to
// different bins.
#pragma once

#include "cuda/roi.cuh"

namespace cvops::cuda {

// `c` is of the input, the output has c / (pooled_h * pooled_w) channels.
template <typename T>
struct PositionShape {
  int64_t n, c, h, w, k, pooled_h, pooled_w, sampling_ratio;
  T scale;
};

// The two axes of ps_roi_align and of ps_roi_pool.
template <typename T>
struct SampledAxes {
  __device__ static RoiAxes<SampledBins<T>> of(const PositionShape<T>& s, const Roi<T>& roi) {
    return {SampledBins<T>(roi.y1, roi.y2, s.scale, T(0.5), false, s.pooled_h, s.sampling_ratio, s.h),
        SampledBins<T>(roi.x1, roi.x2, s.scale, T(0.5), false, s.pooled_w, s.sampling_ratio, s.w)};
  }
};
template <typename T>
struct WholeAxes {
  __device__ static RoiAxes<WholeBins<T>> of(const PositionShape<T>& s, const Roi<T>& roi) {
    return {{roi.y1, roi.y2, s.scale, false, s.pooled_h, s.h}, {roi.x1, roi.x2, s.scale, false, s.pooled_w, s.w}};
  }
};

template <typename Axes, bool last, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, kRoiBlocks<T>) position_sensitive_kernel(const S* __restrict__ input,
    const T* __restrict__ rois, PositionShape<T> s, S* __restrict__ out, int32_t* __restrict__ channel_mapping) {
  const int64_t bins = s.pooled_h * s.pooled_w, channels = s.c / bins, total = s.k * s.c;
  for (int64_t i = grid_index(); i < total; i += grid_stride()) {
    const int64_t k = i / s.c, rest = i % s.c;
    const int64_t bin = last ? rest / channels : rest % bins, c = last ? rest % channels * bins + bin : rest;
    const Roi<T> roi = load_roi(rois, k, s.n);
    T sum = 0;
    if (roi.image >= 0) {
      const S* from = input + roi.image * s.c * s.h * s.w + (last ? c : c * s.h * s.w);
      const auto axes = Axes::of(s, roi);
      axes.down.average(bin / s.pooled_w, [&](int64_t y, T wy) {
        axes.right.average(bin % s.pooled_w,
            [&](int64_t x, T wx) { sum += wy * wx * static_cast<T>(from[(y * s.w + x) * (last ? s.c : 1)]); });
      });
    }
    out[i] = static_cast<S>(sum);
    channel_mapping[i] = static_cast<int32_t>(c);
  }
}

// The gradient, channels_last if `last`.
template <typename Axes, bool last, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2) position_sensitive_backward_kernel(const S* __restrict__ grad,
    MapStrides grad_at, const T* __restrict__ rois, PositionShape<T> s, T most, S* __restrict__ out, int64_t tiles) {
  const int64_t bins = s.pooled_h * s.pooled_w;
  for (int64_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const GatherTile<T> tile(block, s.c, s.h, s.w);
    const int row = tile.row(), column = GatherTile<T>::height + tile.column();
    int p_of[GatherTile<T>::each], q_of[GatherTile<T>::each];  // the bin of each channel
    int64_t grad_of[GatherTile<T>::each];
#pragma unroll
    for (int j = 0; j < GatherTile<T>::each; ++j) {
      const int64_t c = tile.channel + j * kWarp, bin = c % bins;
      p_of[j] = c < s.c ? static_cast<int>(bin / s.pooled_w) : -1, q_of[j] = static_cast<int>(bin % s.pooled_w);
      grad_of[j] = c / bins * grad_at.channel + p_of[j] * grad_at.row + q_of[j] * grad_at.pixel;
    }
    T sum[GatherTile<T>::pixels][GatherTile<T>::each] = {};
    const auto axes = [&](int64_t k) { return Axes::of(s, load_roi(rois, k, s.n)); };
    const auto is_of_map = [&](int64_t k) { return load_roi(rois, k, s.n).image == tile.image; };
    gather_rois<T>(tile, s.k, s.pooled_h, s.pooled_w, is_of_map, axes,
        [&](int64_t k, const LineWeights<T>& weights, int64_t first_p, int64_t first_q) {
#pragma unroll
          for (int j = 0; j < GatherTile<T>::each; ++j) {
            const int p = p_of[j] - static_cast<int>(first_p), q = q_of[j] - static_cast<int>(first_q);
            constexpr int some = LineWeights<T>::bins;
            if (p < 0 || p >= some || q < 0 || q >= some || weights.at[row][p] == T(0)) continue;
            const T value = static_cast<T>(grad[k * grad_at.image + grad_of[j]]);
#pragma unroll
            for (int i = 0; i < GatherTile<T>::pixels; ++i) {
              const T weight = weights.at[row][p] * weights.at[column + i][q];
              if (weight != T(0)) sum[i][j] += weight * value;
            }
          }
        });
    store_tile<last>(tile, sum, most, s.c, s.h, s.w, out);
  }
}

}  // namespace cvops::cuda
