// Kernels of mask_paste: a thread writes 16 bytes of the output, so that stores are whole whatever the width of the
// image; the gradient is gathered, a warp per cell of a mask, without atomics. Launches are in cuda/mask_paste.cu.
#pragma once

#include "cuda/device.cuh"
#include "ops/paste_geometry.h"

namespace cvops::cuda {

constexpr int kPasteThreads = 256;

template <typename T>
__device__ __forceinline__ PasteAxis<T> paste_axis_x(const T* boxes, int64_t k, int64_t cells) {
  return {boxes[4 * k], boxes[4 * k + 2], cells};
}
template <typename T>
__device__ __forceinline__ PasteAxis<T> paste_axis_y(const T* boxes, int64_t k, int64_t cells) {
  return {boxes[4 * k + 1], boxes[4 * k + 3], cells};
}

template <typename T, typename S>
__device__ __forceinline__ T paste_cell(const S* mask, const PasteSizes& s, int64_t row, int64_t column) {
  const bool inside = row >= 0 && row < s.mask_h && column >= 0 && column < s.mask_w;
  return inside ? static_cast<T>(mask[row * s.mask_w + column]) : T(0);
}

// The image rows that a thread's pixels lie in: what they share is found once per row.
template <typename T, typename S>
struct PasteRow {
  PasteSizes s;
  const S* mask;
  PasteAxis<T> columns;
  PasteTap<T> row;

  __device__ __forceinline__ PasteRow(const S* masks, const T* boxes, const PasteSizes& shape, int64_t k, int64_t y)
      : s(shape),
        mask(masks + k * shape.mask_h * shape.mask_w),
        columns(paste_axis_x(boxes, k, shape.mask_w)),
        row{kNoCell, T(0)} {
    const PasteAxis<T> rows = paste_axis_y(boxes, k, shape.mask_h);
    if (!rows.empty() && !columns.empty()) row = rows.tap(y);
  }

  // Nothing of the mask reaches pixels where this is 0.
  __device__ __forceinline__ T at(int64_t x) const {
    if (row.low == kNoCell) return T(0);
    const PasteTap<T> column = columns.tap(x);
    if (column.low == kNoCell) return T(0);
    T value[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      value[i] = paste_between(paste_cell<T>(mask, s, row.low + i, column.low),
          paste_cell<T>(mask, s, row.low + i, column.low + 1), column.weight);
    }
    return paste_between(value[0], value[1], row.weight);
  }
};

// Out is bool for `value >= threshold`, or S for the values.
template <typename Out, typename S, typename T>
__global__ void __launch_bounds__(kPasteThreads, 2) mask_paste_kernel(
    const S* __restrict__ masks, const T* __restrict__ boxes, PasteSizes s, T threshold, Out* __restrict__ out) {
  constexpr int each = 16 / sizeof(Out);
  const int64_t total = s.k * s.height * s.width;
  for (int64_t start = grid_index() * each; start < total; start += grid_stride() * each) {
    int64_t x = start % s.width, y = start / s.width % s.height, k = start / s.width / s.height;
    const int count = static_cast<int>(smaller<int64_t>(each, total - start));
    PasteRow<T, S> row(masks, boxes, s, k, y);
    Pack<Out, each> pack;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const T value = i < count ? row.at(x) : T(0);
      if constexpr (sizeof(Out) == 1)
        pack.at[i] = value >= threshold;
      else
        pack.at[i] = static_cast<Out>(value);
      if (++x == s.width && i + 1 < count) {
        x = 0;
        if (++y == s.height) y = 0, ++k;
        row = PasteRow<T, S>(masks, boxes, s, k, y);
      }
    }
    if (count == each) {
      store_pack(out + start, pack);
    } else {
      for (int i = 0; i < count; ++i) out[start + i] = pack.at[i];
    }
  }
}

// Pixels of an axis that may reach a cell: at least all that do. In double, with room for the rounding of the taps.
struct PasteReach {
  int64_t first, last;

  template <typename T>
  __device__ __forceinline__ PasteReach(const PasteAxis<T>& axis, int64_t cell, int64_t pixels) {
    const double from = axis.from, extent = static_cast<double>(axis.to) - from, step = extent / axis.cells;
    const double room = 2 + 1e-6 * (fabs(from) + extent);
    const double low = from + (cell - 0.5) * step - 0.5 - room, high = from + (cell + 1.5) * step - 0.5 + room;
    const double most = static_cast<double>(pixels);
    first = axis.empty() ? 0 : static_cast<int64_t>(low < 0 ? 0 : low > most ? most : low);
    last = axis.empty() ? 0 : static_cast<int64_t>(high < 0 ? 0 : high > most ? most : ceil(high));
  }
};

template <typename T>
__device__ __forceinline__ T weight_of_cell(const PasteTap<T>& tap, int64_t cell) {
  return tap.low == kNoCell ? T(0) : tap.low == cell ? T(1) - tap.weight : tap.low + 1 == cell ? tap.weight : T(0);
}

template <typename S, typename T>
__global__ void __launch_bounds__(kPasteThreads, 2) mask_paste_backward_kernel(
    const S* __restrict__ grad, const T* __restrict__ boxes, PasteSizes s, T most, S* __restrict__ out) {
  const int64_t total = s.k * s.mask_h * s.mask_w;
  for (int64_t i = grid_index() / kWarp; i < total; i += grid_stride() / kWarp) {
    const int64_t column = i % s.mask_w, row = i / s.mask_w % s.mask_h, k = i / s.mask_w / s.mask_h;
    const PasteAxis<T> columns = paste_axis_x(boxes, k, s.mask_w), rows = paste_axis_y(boxes, k, s.mask_h);
    const PasteReach xs(columns, column, s.width), ys(rows, row, s.height);
    T sum = T(0);
    for (int64_t x = xs.first + lane(); x < xs.last; x += kWarp) {
      const T weight_x = weight_of_cell(columns.tap(x), column);
      if (weight_x == T(0)) continue;
      for (int64_t y = ys.first; y < ys.last; ++y) {
        const T weight = weight_x * weight_of_cell(rows.tap(y), row);
        if (weight != T(0)) sum += weight * static_cast<T>(grad[(k * s.height + y) * s.width + x]);
      }
    }
    sum = warp_sum(sum);
    if (lane() == 0) out[i] = static_cast<S>(saturated(sum, most));
  }
}

}  // namespace cvops::cuda
