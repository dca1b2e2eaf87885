// Kernels of deform_conv2d: the sampled columns of a run of output positions, and the gradients that go back through
// the samples. The multiplications are torch's; they and the launches are in cuda/deform_conv2d.cu.
//
// Rows are output positions of all images in a row: row = image * positions + p; a chunk is rows [first, first + rows).
// Columns are [groups][rows][taps][c / groups], pixels are stored channels last.
#pragma once

#include "cuda/device.cuh"
#include "ops/deform_geometry.h"

namespace cvops::cuda {

constexpr int kDeformThreads = 256;

// Where a thread is: a pack of V channels of one tap of one row.
struct DeformPlace {
  int64_t image, p, k, channel, og, at;  // at: in columns

  __device__ __forceinline__ DeformPlace(
      const DeformShape& s, int64_t item, int64_t packs, int width, int64_t first, int64_t rows) {
    const int64_t local = item / packs / s.taps(), row = first + local;
    channel = item % packs * width, k = item / packs % s.taps();
    image = row / s.positions(), p = row % s.positions(), og = channel / s.offset_group_in();
    const int64_t group = channel / s.group_in();
    at = ((group * rows + local) * s.taps() + k) * s.group_in() + channel - group * s.group_in();
  }
};

template <typename T>
__device__ __forceinline__ T mask_at(
    const DeformShape& s, const T* mask, int64_t image, int64_t og, int64_t k, int64_t p) {
  return mask == nullptr ? T(1) : mask[deform_mask(s, image, og, k, p)];
}

// columns = the samples, times the mask.
template <int V, typename T>
__global__ void __launch_bounds__(kDeformThreads)
    deform_columns_kernel(const T* __restrict__ input, const T* __restrict__ offset, const T* __restrict__ mask,
        DeformShape s, int64_t first, int64_t rows, T* __restrict__ columns) {
  const int64_t packs = s.c / V;
  for (int64_t i = grid_index(); i < rows * s.taps() * packs; i += grid_stride()) {
    const DeformPlace place(s, i, packs, V, first, rows);
    const DeformCorners<T> corners = deform_tap<T>(s, offset, place.image, place.og, place.k, place.p);
    const T scale = mask_at(s, mask, place.image, place.og, place.k, place.p);
    const T* const plane = input + place.image * s.h * s.w * s.c + place.channel;
    Pack<T, V> sum{};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (corners.pixel[corner] < 0) continue;
      const Pack<T, V> pixel = load_pack<V>(plane + corners.pixel[corner] * s.c);
      const T weight = corners.weight[corner] * scale;
#pragma unroll
      for (int v = 0; v < V; ++v) sum.at[v] += weight * pixel.at[v];
    }
    store_pack(columns + place.at, sum);
  }
}

// Gradients of offset and mask: one warp per row, tap and offset group, its lanes along the channels, added in a fixed
// order. grad_mask may be null.
template <typename T>
__global__ void __launch_bounds__(kDeformThreads) deform_grad_offset_kernel(const T* __restrict__ input,
    const T* __restrict__ offset, const T* __restrict__ mask, const T* __restrict__ columns_grad, DeformShape s,
    int64_t first, int64_t rows, T* __restrict__ grad_offset, T* __restrict__ grad_mask) {
  const int64_t channels = s.offset_group_in(), warps = grid_stride() / kWarp;
  for (int64_t i = grid_index() / kWarp; i < rows * s.taps() * s.offset_groups; i += warps) {
    const int64_t og = i % s.offset_groups;
    const DeformPlace place(s, i, s.offset_groups, static_cast<int>(channels), first, rows);
    const DeformCorners<T> corners = deform_tap<T>(s, offset, place.image, og, place.k, place.p);
    const T* const plane = input + place.image * s.h * s.w * s.c;
    T by_y = T(0), by_x = T(0), by_mask = T(0);
    for (int64_t c = lane(); c < channels; c += kWarp) {
      const int64_t channel = og * channels + c, group = channel / s.group_in();
      const int64_t at = ((group * rows + i / s.offset_groups / s.taps()) * s.taps() + place.k) * s.group_in() +
                         channel - group * s.group_in();
      const T grad = columns_grad[at];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (corners.pixel[corner] < 0) continue;
        const T value = grad * plane[corners.pixel[corner] * s.c + channel];
        by_y += corners.by_y[corner] * value, by_x += corners.by_x[corner] * value;
        by_mask += corners.weight[corner] * value;
      }
    }
    by_y = warp_sum(by_y), by_x = warp_sum(by_x), by_mask = warp_sum(by_mask);
    if (lane() == 0) {
      const T scale = mask_at(s, mask, place.image, og, place.k, place.p);
      const int64_t to = deform_offset(s, place.image, og, place.k, place.p);
      grad_offset[to] = by_y * scale, grad_offset[to + s.positions()] = by_x * scale;
      if (grad_mask != nullptr) grad_mask[deform_mask(s, place.image, og, place.k, place.p)] = by_mask;
    }
  }
}

// Gradient of the input, zero beforehand, by atomic additions: the order, and so the last bits, vary from run to run.
template <typename T>
__global__ void __launch_bounds__(kDeformThreads)
    deform_grad_input_kernel(const T* __restrict__ offset, const T* __restrict__ mask,
        const T* __restrict__ columns_grad, DeformShape s, int64_t first, int64_t rows, T* __restrict__ grad_input) {
  for (int64_t i = grid_index(); i < rows * s.taps() * s.c; i += grid_stride()) {
    const DeformPlace place(s, i, s.c, 1, first, rows);
    const DeformCorners<T> corners = deform_tap<T>(s, offset, place.image, place.og, place.k, place.p);
    const T grad = columns_grad[place.at] * mask_at(s, mask, place.image, place.og, place.k, place.p);
    T* const plane = grad_input + place.image * s.h * s.w * s.c + place.channel;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (corners.pixel[corner] >= 0) atomicAdd(plane + corners.pixel[corner] * s.c, corners.weight[corner] * grad);
    }
  }
}

// The same in a fixed order: a thread owns one channel of one image and goes through the rows of the chunk. Slower, for
// deterministic mode.
template <typename T>
__global__ void __launch_bounds__(kDeformThreads)
    deform_grad_input_ordered_kernel(const T* __restrict__ offset, const T* __restrict__ mask,
        const T* __restrict__ columns_grad, DeformShape s, int64_t first, int64_t rows, T* __restrict__ grad_input) {
  for (int64_t i = grid_index(); i < s.n * s.c; i += grid_stride()) {
    const int64_t image = i / s.c, channel = i % s.c;
    const int64_t from = image * s.positions() - first, until = from + s.positions();
    T* const plane = grad_input + image * s.h * s.w * s.c + channel;
    for (int64_t local = from > 0 ? from : 0; local < (until < rows ? until : rows); ++local) {
      for (int64_t k = 0; k < s.taps(); ++k) {
        const DeformPlace place(s, (local * s.taps() + k) * s.c + channel, s.c, 1, first, rows);
        const DeformCorners<T> corners = deform_tap<T>(s, offset, image, place.og, k, place.p);
        const T grad = columns_grad[place.at] * mask_at(s, mask, image, place.og, k, place.p);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (corners.pixel[corner] >= 0) plane[corners.pixel[corner] * s.c] += corners.weight[corner] * grad;
        }
      }
    }
  }
}

// to[i] += from[i % period]: the bias of every row (period: channels), or one chunk's share of a gradient.
template <typename T>
__global__ void __launch_bounds__(kDeformThreads)
    deform_add_kernel(const T* __restrict__ from, int64_t period, int64_t count, T* __restrict__ to) {
  for (int64_t i = grid_index(); i < count; i += grid_stride()) to[i] += from[i % period];
}

}  // namespace cvops::cuda
