// Kernels of batch_norm: the fold into weights, and norm and activation in one pass. Launches are in
// cuda/batch_norm.cu.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/device.cuh"
#include "ops/norm_of_channel.h"

namespace cvops::cuda {

constexpr int kFoldThreads = 128, kNormActThreads = 256;

// A block per output channel. Every thread works out the channel's two numbers: a few loads that all lanes share.
template <typename S, typename T>
__global__ void __launch_bounds__(kFoldThreads) fold_batch_norm_kernel(const S* __restrict__ weight,
    NormEntries<S> norm, T eps, int64_t channels, int64_t inner, S* __restrict__ scaled, S* __restrict__ shift) {
  for (int64_t c = blockIdx.x; c < channels; c += gridDim.x) {
    const Affine<T> affine = norm_of_channel(norm, eps, c);
    if (threadIdx.x == 0) shift[c] = static_cast<S>(affine.shift);
    for (int64_t i = threadIdx.x; i < inner; i += kFoldThreads) {
      scaled[c * inner + i] = static_cast<S>(static_cast<T>(weight[c * inner + i]) * affine.scale);
    }
  }
}

// Scale and shift of every channel. A kernel of its own, as square roots and divisions for every pack of elements would
// take registers that the pass over the maps does not have.
template <typename S, typename T>
__global__ void __launch_bounds__(kNormActThreads)
    norm_channels_kernel(NormEntries<S> norm, T eps, int64_t channels, Affine<T>* __restrict__ norms) {
  for (int64_t c = grid_index(); c < channels; c += grid_stride()) norms[c] = norm_of_channel(norm, eps, c);
}

// Packs of N elements, all of one channel with `pixels` in a row, or of N neighbouring channels in channels_last.
// `output` may be `input`.
template <int N, bool channels_last, typename S, typename T>
__global__ void __launch_bounds__(kNormActThreads) norm_act_kernel(const S* input, S* output,
    const Affine<T>* __restrict__ norms, int activation, int64_t packs, int64_t channels, int64_t pixels) {
  for (int64_t i = grid_index(); i < packs; i += grid_stride()) {
    const int64_t first = i * N;
    const Affine<T>* const norm = norms + (channels_last ? first % channels : first / pixels % channels);
    Pack<S, N> pack = load_pack<N>(input + first);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const Affine<T> affine = norm[channels_last ? k : 0];
      const T normed = add_rn(mul_rn(static_cast<T>(pack.at[k]), affine.scale), affine.shift);
      pack.at[k] = static_cast<S>(activate(normed, activation));
    }
    store_pack<N>(output + first, pack);
  }
}

}  // namespace cvops::cuda
