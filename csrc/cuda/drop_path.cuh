// Kernels of drop_path: a factor per group, and the factors times a tensor. Launches are in cuda/drop_path.cu.
#pragma once

#include "cuda/device.cuh"
#include "ops/drop_path_groups.h"

namespace cvops::cuda {

constexpr int kDropPathThreads = 256;

// A kernel of its own, because Philox for every pack of elements would take longer than the memory does.
template <typename T>
__global__ void __launch_bounds__(kDropPathThreads)
    group_factors_kernel(const int64_t* __restrict__ seed, Chance p, T scale, int64_t groups, T* __restrict__ factors) {
  for (int64_t i = grid_index(); i < groups; i += grid_stride()) {
    factors[i] = group_is_dropped(static_cast<uint64_t>(*seed), i, p) ? T(0) : scale;
  }
}

// A group is `inner` elements in a row; with channels_last, element (n, pixel, c) belongs to group n * channels + c.
// A factor of 0 writes 0, whatever the input holds.
template <int N, bool channels_last, typename In, typename T>
__global__ void __launch_bounds__(kDropPathThreads) scale_groups_kernel(const In* __restrict__ in,
    const T* __restrict__ factors, int64_t numel, int64_t inner, int64_t channels, In* __restrict__ out) {
  const int64_t packs = (numel + N - 1) / N;
  for (int64_t i = grid_index(); i < packs; i += grid_stride()) {
    const int64_t first = i * N;
    int64_t group, left;  // group of the first element, and elements until the next one
    if constexpr (channels_last) {
      const int64_t pixel = first / channels;
      group = pixel / inner * channels + first - pixel * channels, left = 1;
    } else {
      group = first / inner, left = (group + 1) * inner - first;
    }
    Pack<In, N> pack;
    const bool whole = first + N <= numel;
    if (whole) pack = load_pack<N>(in + first);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (!whole) {
        if (first + k >= numel) break;
        pack.at[k] = in[first + k];
      }
      const T factor = factors[group];
      pack.at[k] = static_cast<In>(factor == 0 ? T(0) : static_cast<T>(pack.at[k]) * factor);
      if (!whole) out[first + k] = pack.at[k];
      if (--left == 0) ++group, left = channels_last ? 1 : inner;
    }
    if (whole) store_pack<N>(out + first, pack);
  }
}

}  // namespace cvops::cuda
