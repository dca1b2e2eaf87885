// Kernels that ps_roi_align and ps_roi_pool share; they differ in the axes of a RoI, which `axes` makes. Forward: one
// thread per bin and output channel. Backward: one thread per pixel and channel of the gradient (cuda/roi.cuh).
#pragma once

#include "cuda/roi.cuh"

namespace cvops::cuda {

// One channel per thread: neighbouring channels belong to different bins.
using PlaneOfBin = Tile<16, 16, 1, 1>;
using PixelOfBins = Tile<4, 2, kWarp, 1>;

// `c` is of the input, the output has c / (pooled_h * pooled_w) channels.
template <typename T>
struct PositionShape {
  int64_t n, c, h, w, k, pooled_h, pooled_w, sampling_ratio;
  T scale;
};

// The two axes of ps_roi_align and of ps_roi_pool.
template <typename T>
struct SampledAxes {
  __device__ static SampledBins<T> down(const PositionShape<T>& s, const Roi<T>& roi) {
    return SampledBins<T>(roi.y1, roi.y2, s.scale, T(0.5), false, s.pooled_h, s.sampling_ratio, s.h);
  }
  __device__ static SampledBins<T> right(const PositionShape<T>& s, const Roi<T>& roi) {
    return SampledBins<T>(roi.x1, roi.x2, s.scale, T(0.5), false, s.pooled_w, s.sampling_ratio, s.w);
  }
};
template <typename T>
struct WholeAxes {
  __device__ static WholeBins<T> down(const PositionShape<T>& s, const Roi<T>& roi) {
    return {roi.y1, roi.y2, s.scale, false, s.pooled_h, s.h};
  }
  __device__ static WholeBins<T> right(const PositionShape<T>& s, const Roi<T>& roi) {
    return {roi.x1, roi.x2, s.scale, false, s.pooled_w, s.w};
  }
};

template <typename Axes, bool last, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2) position_sensitive_kernel(const S* __restrict__ input,
    const T* __restrict__ rois, PositionShape<T> s, S* __restrict__ out, int32_t* __restrict__ channel_mapping) {
  const int64_t bins = s.pooled_h * s.pooled_w, channels = s.c / bins, total = s.k * s.c;
  for (int64_t i = grid_index(); i < total; i += grid_stride()) {
    const int64_t k = i / s.c, rest = i % s.c;
    const int64_t bin = last ? rest / channels : rest % bins, c = last ? rest % channels * bins + bin : rest;
    const Roi<T> roi = load_roi(rois, k, s.n);
    T sum = 0;
    if (roi.image >= 0) {
      const S* from = input + roi.image * s.c * s.h * s.w + (last ? c : c * s.h * s.w);
      const auto right = Axes::right(s, roi);
      Axes::down(s, roi).average(bin / s.pooled_w, [&](int64_t y, T wy) {
        right.average(bin % s.pooled_w,
            [&](int64_t x, T wx) { sum += wy * wx * static_cast<T>(from[(y * s.w + x) * (last ? s.c : 1)]); });
      });
    }
    out[i] = static_cast<S>(sum);
    channel_mapping[i] = static_cast<int32_t>(c);
  }
}

template <typename Axes, typename Tile, typename S, typename T>
__global__ void __launch_bounds__(kRoiThreads, 2)
    position_sensitive_backward_kernel(const S* __restrict__ grad, MapStrides grad_at, const T* __restrict__ rois,
        PositionShape<T> s, T most, S* __restrict__ out, MapStrides out_at, int64_t tiles) {
  const int64_t bins = s.pooled_h * s.pooled_w;
  for (int64_t block = blockIdx.x; block < tiles; block += gridDim.x) {
    const Tile tile(block, s.c, s.h, s.w);
    const bool inside = tile.y < s.h && tile.x < s.w && tile.channel < s.c;
    T sum = 0;
    const auto meets = [&](int64_t k) {
      const Roi<T> roi = load_roi(rois, k, s.n);
      return roi.image == tile.image && Axes::down(s, roi).meets(tile.top, tile.top + Tile::height) &&
             Axes::right(s, roi).meets(tile.left, tile.left + Tile::width);
    };
    for_each_roi(s.k, meets, [&](int64_t k) {
      if (!inside) return;
      const Roi<T> roi = load_roi(rois, k, s.n);
      const auto down = Axes::down(s, roi);
      const auto right = Axes::right(s, roi);
      const int64_t c = tile.channel, p = c % bins / s.pooled_w, q = c % s.pooled_w;
      const T weight = down.weight(p, tile.y) * right.weight(q, tile.x);
      if (weight == T(0)) return;
      const int64_t at = k * grad_at.image + c / bins * grad_at.channel + p * grad_at.row + q * grad_at.pixel;
      sum += weight * static_cast<T>(grad[at]);
    });
    if (inside) {
      out[tile.image * out_at.image + tile.channel * out_at.channel + tile.y * out_at.row + tile.x * out_at.pixel] =
          static_cast<S>(saturated(sum, most));
    }
  }
}

}  // namespace cvops::cuda
