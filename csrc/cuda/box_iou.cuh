// Kernels of box_iou: the matrix of a metric between two sets of boxes, and its gradient by either set. Launch shapes
// are chosen in cuda/box_iou.cu.
#pragma once

#include "cuda/box.cuh"

namespace cvops::cuda {

constexpr int kIouThreads = 128;
constexpr int kIouRowsPerThread = 4;  // with 4 columns each, a loaded box serves 4 pairs
constexpr int kIouColumnsPerThread = 4;

// out[b, i, j] = metric(boxes1[b, i], boxes2[b, j]). A block makes tiles of 4 * 2^log2_lanes columns; its other threads
// lie along the rows, so that few columns still fill a block. A thread's columns are in packs of V, the rows of a tile
// in dynamic shared memory, BoxAndTerms<T>[tile rows].
template <int metric, int V, typename In, typename T>
__global__ void __launch_bounds__(kIouThreads, sizeof(T) == 8 ? 3 : 8)
    box_iou_kernel(const In* __restrict__ boxes1, const In* __restrict__ boxes2, int64_t batch, int64_t n, int64_t m,
        int log2_lanes, MetricEps<T> eps, T* __restrict__ out) {
  constexpr int kPacks = kIouColumnsPerThread / V;
  CVOPS_DYNAMIC_SHARED(BoxAndTerms<T>, rows);
  const int lanes = 1 << log2_lanes;
  const int along_columns = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int along_rows = static_cast<int>(threadIdx.x) >> log2_lanes;
  const int row_step = kIouThreads >> log2_lanes;
  const int tile_rows = row_step * kIouRowsPerThread;
  const int tile_columns = lanes * kIouColumnsPerThread;
  const int64_t down = (n + tile_rows - 1) / tile_rows, across = (m + tile_columns - 1) / tile_columns;

  for (int64_t tile = blockIdx.x; tile < batch * down * across; tile += gridDim.x) {
    const int64_t image = tile / (down * across);
    const int64_t row0 = tile / across % down * tile_rows, column0 = tile % across * tile_columns;
    __syncthreads();  // the rows of the tile before are no longer read
    for (int r = static_cast<int>(threadIdx.x); r < tile_rows && row0 + r < n; r += kIouThreads) {
      rows[r].box = load_box<T>(boxes1, image * n + row0 + r);
      rows[r].terms = terms_of<metric>(rows[r].box);
    }

    Box<T> boxes[kIouColumnsPerThread];
    BoxTerms<T> terms[kIouColumnsPerThread];
    const int64_t column = column0 + along_columns * V;  // my first pack; the others are `pack_step` apart
    const int pack_step = lanes * V;
    const int present = static_cast<int>(m - column < tile_columns ? m - column : tile_columns);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        // Past the end the last box stands in, and nothing is stored.
        const int64_t j = column + p * pack_step + v;
        boxes[p * V + v] = load_box<T>(boxes2, image * m + (j < m ? j : m - 1));
        terms[p * V + v] = terms_of<metric>(boxes[p * V + v]);
      }
    }
    __syncthreads();

    // A running pointer: with the address computed per row, nvcc splits the 16-byte store into four.
    T* out_row = out + (image * n + row0 + along_rows) * m + column;
    for (int r = along_rows; r < tile_rows && row0 + r < n; r += row_step, out_row += row_step * m) {
      const BoxAndTerms<T> row = rows[r];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        Pack<T, V> values;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          values.at[v] = box_metric<metric>(row.box, row.terms, boxes[p * V + v], terms[p * V + v], eps);
        }
        if (p * pack_step < present) store_pack(out_row + p * pack_step, values);
      }
    }
  }
}

constexpr int kIouBackwardThreads = 256;

// Where pair (output, other) lies in a matrix: grad[output * of_output + other * of_other].
struct PairStrides {
  int64_t of_output, of_other;
};

// grads[b, i] = sum over k of grad * d metric / d boxes[b, i], for one of the two sets ("output", count of them),
// against all boxes of the other set. `second` says that the outputs are boxes2. 2^log2_lanes threads share one output
// and add up in a fixed order, so the result does not depend on timing; the lanes lie along whichever of the two is
// contiguous in the matrix.
template <int metric, bool second, typename In, typename T>
__global__ void __launch_bounds__(kIouBackwardThreads, sizeof(T) == 8 ? 2 : 4)
    box_iou_backward_kernel(const In* __restrict__ boxes, const In* __restrict__ others, const T* __restrict__ grad,
        int64_t batch, int64_t count, int64_t other_count, PairStrides strides, int log2_lanes, MetricEps<T> eps,
        T most, In* __restrict__ grads) {
  CVOPS_SHARED(Box<T>, partial, kIouBackwardThreads);
  const int t = static_cast<int>(threadIdx.x);
  const int lanes = 1 << log2_lanes, outputs = kIouBackwardThreads >> log2_lanes;
  const int lane = second ? t / outputs : t & (lanes - 1);
  const int slot = second ? t & (outputs - 1) : t >> log2_lanes;
  const int64_t tiles = (count + outputs - 1) / outputs;

  for (int64_t tile = blockIdx.x; tile < batch * tiles; tile += gridDim.x) {
    const int64_t image = tile / tiles, i = tile % tiles * outputs + slot;
    const T* const image_grad = grad + image * count * other_count;
    Box<T> sum{T(0), T(0), T(0), T(0)};
    if (i < count) {
      const Box<T> box = load_box<T>(boxes, image * count + i);
      const BoxTerms<T> terms = terms_of<metric>(box);
      for (int64_t k = lane; k < other_count; k += lanes) {
        const Box<T> other = load_box<T>(others, image * other_count + k);
        const BoxTerms<T> other_terms = terms_of<metric>(other);
        const T g = image_grad[i * strides.of_output + k * strides.of_other];
        const Box<T> part = second ? box_metric_backward<metric>(other, other_terms, box, terms, eps, g).b
                                   : box_metric_backward<metric>(box, terms, other, other_terms, eps, g).a;
        sum = plus(sum, part);
      }
    }
    __syncthreads();  // the partial sums of the tile before are no longer read
    partial[t] = sum;
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) {
        sum = plus(sum, partial[second ? t + half * outputs : t + half]);
        partial[t] = sum;
      }
    }
    if (lane == 0 && i < count) store_box_gradient(grads, image * count + i, sum, most);
  }
}

}  // namespace cvops::cuda
