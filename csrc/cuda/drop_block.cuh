// Kernels of drop_block: seeds, the mask that follows from them, and the mask times a tensor. Launches are in
// cuda/drop_block.cu.
#pragma once

#include "cuda/device.cuh"
#include "ops/drop_block_geometry.h"

namespace cvops::cuda {

constexpr int kDropBlockThreads = 256;
constexpr int kGroupsPerWarp = 2;  // a counter per lane, 16 counters per group

// Bit i of a 16-bit number to bit 2 i.
__device__ __forceinline__ uint32_t spread(uint32_t bits) {
  bits = (bits | bits << 8) & 0x00ff00ffu;
  bits = (bits | bits << 4) & 0x0f0f0f0fu;
  bits = (bits | bits << 2) & 0x33333333u;
  return (bits | bits << 1) & 0x55555555u;
}

// One counter per thread, eight seeds each. A ballot over the warp collects one half of one word of all its counters:
// every second of 32 seeds in a row, of two groups.
__global__ void __launch_bounds__(kDropBlockThreads)
    draw_seeds_kernel(const int64_t* __restrict__ seed_at, Chance gamma, int64_t groups, uint32_t* __restrict__ seeds) {
  const uint64_t seed = static_cast<uint64_t>(*seed_at);
  const uint32_t bound = static_cast<uint32_t>(gamma.most >> 48);
  const int64_t warps = (groups + kGroupsPerWarp - 1) / kGroupsPerWarp;
  for (int64_t w = grid_index() / kWarp; w < warps; w += grid_stride() / kWarp) {
    const PhiloxWords words = philox(seed, static_cast<uint64_t>(w * kWarp + lane()), kSeedStream);
    const int64_t first = w * kGroupsPerWarp * kSeedGroup + lane() / 16 * kSeedGroup + lane() % 16 * 2;
    uint32_t mine = 0;  // lane 4 g + i collects the i-th 32 bits of group g of the warp
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t piece = words.at[i] >> (16 * half) & 0xffffu;
        bool is_seed = piece < bound;
        if (piece == bound) is_seed = tie_is_seed(seed, first + 32 * i + half, gamma);
        const uint32_t all = __ballot_sync(kAllLanes, is_seed);
        if (lane() % 4 == i) mine |= spread(lane() < 4 ? all & 0xffffu : all >> 16) << half;
      }
    }
    if (lane() < 8 && w * kGroupsPerWarp + lane() / 4 < groups) seeds[w * 8 + lane()] = mine;
  }
}

// The same where seeds are rare: one word of the stream per thread. Eight threads make the same counter, which is
// cheaper than handing its pieces out: a word is 64 seeds.
__global__ void __launch_bounds__(kDropBlockThreads) draw_rare_seeds_kernel(
    const int64_t* __restrict__ seed_at, GapTable gaps, int64_t words, uint64_t* __restrict__ seeds) {
  CVOPS_SHARED(uint64_t, at_least, 65);
  for (int i = static_cast<int>(threadIdx.x); i < 65; i += kDropBlockThreads) at_least[i] = gaps.at_least[i];
  __syncthreads();
  const uint64_t seed = static_cast<uint64_t>(*seed_at);
  const uint32_t bound = static_cast<uint32_t>(at_least[64] >> 48);
  for (int64_t i = grid_index(); i < words; i += grid_stride()) {
    const int64_t counter = i / kSeedGroup * 16 + i % 32 / 2;
    const PhiloxWords drawn = philox(seed, static_cast<uint64_t>(counter), kSeedStream);
    const int which = static_cast<int>(i % kSeedGroup) / 32;
    uint32_t piece = which < 2 ? (which == 0 ? drawn.at[0] : drawn.at[1]) : (which == 2 ? drawn.at[2] : drawn.at[3]);
    piece = piece >> (16 * (i % 2)) & 0xffffu;
    seeds[i] = piece < bound ? 0 : seeds_by_gaps(seed, i, piece, at_least);
  }
}

// One word of the mask per thread; what is kept is counted in integers, so the order of the additions does not matter.
__global__ void __launch_bounds__(kDropBlockThreads, 2) kept_words_kernel(DropBlockShape s,
    const uint64_t* __restrict__ seeds, int64_t words, uint64_t* __restrict__ mask, unsigned long long* kept) {
  const int64_t numel = s.numel();
  int64_t count = 0;
  for (int64_t i = grid_index(); i < words; i += grid_stride()) {
    const int64_t first = 64 * i, last = first + 64 < numel ? first + 64 : numel;
    uint64_t word = 0;
    if (first < last) {
      RowCursor at = RowCursor::at(s, first);
      for (int64_t element = first; element < last;) {
        const int64_t run = s.w - at.x < last - element ? s.w - at.x : last - element;
        word |= (~dropped_run(s, seeds, at.plane, at.z, at.y, at.x) & first_bits(run)) << (element - first);
        element += run;
        at.advance(s, run);
      }
    }
    mask[i] = word;
    count += __popcll(word);
  }
  const int64_t total = block_sum<kDropBlockThreads>(count);
  if (threadIdx.x == 0) atomicAdd(kept, static_cast<unsigned long long>(total));
}

// N bits of the mask from element `first` on, in the order of memory; `first` is a multiple of N.
template <int N, bool channels_last>
__device__ __forceinline__ uint32_t bits_of_pack(
    const uint32_t* __restrict__ mask, int64_t first, int64_t channels, int64_t pixels) {
  if constexpr (!channels_last) {
    return mask[first >> 5] >> (first & 31);
  } else {  // a pack is N channels of one pixel
    const int64_t pixel = first / channels, image = pixel / pixels;
    int64_t bit = (image * channels + first - pixel * channels) * pixels + pixel - image * pixels;
    uint32_t bits = 0;
#pragma unroll
    for (int k = 0; k < N; ++k, bit += pixels) bits |= (mask[bit >> 5] >> (bit & 31) & 1u) << k;
    return bits;
  }
}

// `out` may be `in`: every element is read and written by the same thread. With N > 1 both start at a multiple of 16
// bytes, and N divides the number of channels if channels are innermost.
template <int N, bool channels_last, typename In, typename T>
__global__ void __launch_bounds__(kDropBlockThreads) drop_block_kernel(const In* in, const uint32_t* __restrict__ mask,
    const int64_t* __restrict__ kept, double eps, int64_t numel, int64_t channels, int64_t pixels, In* out) {
  CVOPS_SHARED(T, shared_scale, 1);
  if (threadIdx.x == 0) shared_scale[0] = static_cast<T>(drop_block_scale(numel, *kept, eps));
  __syncthreads();
  const T scale = shared_scale[0];
  const int64_t packs = (numel + N - 1) / N;
  for (int64_t i = grid_index(); i < packs; i += grid_stride()) {
    const int64_t first = i * N;
    const uint32_t bits = bits_of_pack<N, channels_last>(mask, first, channels, pixels);
    if (first + N <= numel) {
      Pack<In, N> pack = load_pack<N>(in + first);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        pack.at[k] = static_cast<In>((bits >> k & 1u) != 0 ? static_cast<T>(pack.at[k]) * scale : T(0));
      }
      store_pack<N>(out + first, pack);
    } else {
      for (int64_t k = 0; first + k < numel; ++k) {
        out[first + k] = static_cast<In>((bits >> k & 1u) != 0 ? static_cast<T>(in[first + k]) * scale : T(0));
      }
    }
  }
}

}  // namespace cvops::cuda
