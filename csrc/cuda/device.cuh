// The device side that kernels share: shared memory, indices, 16-byte packs, warp and block reductions, atomics and
// flags between blocks. Plain CUDA C++ without torch; the host side is in cuda/launch.h.
//
// Seams: CVOPS_SHARED and CVOPS_DYNAMIC_SHARED may be defined beforehand.
#pragma once

#include <cstdint>
#include <cstring>

// An array in shared memory, one per block: CVOPS_SHARED(float, tile, 256); contents start undefined.
#ifndef CVOPS_SHARED
#define CVOPS_SHARED(type, name, count) __shared__ type name[count]
#endif

// The dynamic shared memory of the launch, as a pointer: CVOPS_DYNAMIC_SHARED(float, tile).
#ifndef CVOPS_DYNAMIC_SHARED
#define CVOPS_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char cvops_dynamic[]; \
  type* const name = reinterpret_cast<type*>(cvops_dynamic)
#endif

namespace cvops::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Half types compute in float.
template <typename T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// First index and stride of a loop over all threads of a one-dimensional grid.
__device__ __forceinline__ int64_t grid_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t grid_stride() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

__device__ __forceinline__ float exp_of(float x) {
  return expf(x);
}
__device__ __forceinline__ double exp_of(double x) {
  return exp(x);
}

// a * b + c, rounded once; the compiler contracts nothing by itself (docs/numerics.md).
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

__device__ __forceinline__ int lane() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ __forceinline__ int warp() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

// N values moved by loads and stores of up to 16 bytes; the address must be a multiple of the pack, or of 16.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

// The built-in type of one access: the compiler keeps it whole, which it does not promise for a struct.
template <int Bytes>
struct AccessOf {
  using type = uint4;
};
template <>
struct AccessOf<8> {
  using type = uint2;
};
template <>
struct AccessOf<4> {
  using type = unsigned;
};
template <>
struct AccessOf<2> {
  using type = unsigned short;
};
template <>
struct AccessOf<1> {
  using type = unsigned char;
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  using Access = typename AccessOf<sizeof(Pack<T, N>)>::type;
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(Access)); ++i) {
    const Access part = reinterpret_cast<const Access*>(from)[i];
    memcpy(reinterpret_cast<char*>(&pack) + i * sizeof(Access), &part, sizeof(Access));
  }
  return pack;
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
  using Access = typename AccessOf<sizeof(Pack<T, N>)>::type;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / sizeof(Access)); ++i) {
    Access part;
    memcpy(&part, reinterpret_cast<const char*>(&pack) + i * sizeof(Access), sizeof(Access));
    reinterpret_cast<Access*>(to)[i] = part;
  }
}

// value, brought into [-most, most]; NaN stays. Gradients are stored that way (largest_gradient in cuda/launch.h).
template <typename T>
__device__ __forceinline__ T saturated(T value, T most) {
  return value > most ? most : value < -most ? -most : value;
}

// Reductions over the 32 lanes of a full warp; every lane gets the result. The order of the sum is fixed.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <typename T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Sum over a one-dimensional block of Threads; every thread gets it. Ends with a barrier, so it may be called again.
template <int Threads, typename T>
__device__ __forceinline__ T block_sum(T value) {
  static_assert(Threads % kWarp == 0, "whole warps only");
  CVOPS_SHARED(T, partial, Threads / kWarp);
  value = warp_sum(value);
  if (lane() == 0) partial[warp()] = value;
  __syncthreads();
  T total = partial[0];
#pragma unroll
  for (int i = 1; i < Threads / kWarp; ++i) total += partial[i];
  __syncthreads();
  return total;
}

// Sum of the values of the threads before this one, and of all, in a one-dimensional block of Threads.
struct ScannedSum {
  int before, total;
};

template <int Threads>
__device__ __forceinline__ ScannedSum block_scan(int value) {
  static_assert(Threads % kWarp == 0, "whole warps only");
  CVOPS_SHARED(int, of_warp, Threads / kWarp);
  int inclusive = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int left = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane() >= step) inclusive += left;
  }
  if (lane() == kWarp - 1) of_warp[warp()] = inclusive;
  __syncthreads();
  ScannedSum sum{inclusive - value, 0};
#pragma unroll
  for (int w = 0; w < Threads / kWarp; ++w) {
    if (w < warp()) sum.before += of_warp[w];
    sum.total += of_warp[w];
  }
  __syncthreads();
  return sum;
}

// One word that a block hands to later blocks of the same grid: the word itself is the message, so nothing else needs
// to be made visible. The waiting block must know that the publisher has started (tickets by atomicAdd, not blockIdx),
// or the wait may never end.
template <typename Word>
__device__ __forceinline__ void publish(Word* at, Word word) {
  *reinterpret_cast<volatile Word*>(at) = word;
}

// Waits until none of Count words is `empty`. All are asked for at once, so the wait is one trip to memory when they
// are already there.
template <int Count, typename Word>
__device__ __forceinline__ Pack<Word, Count> await(const Word* at, Word empty) {
  Pack<Word, Count> seen;
  for (;;) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < Count; ++i) seen.at[i] = reinterpret_cast<const volatile Word*>(at)[i];
#pragma unroll
    for (int i = 0; i < Count; ++i) all &= seen.at[i] != empty;
    if (all) return seen;
    __nanosleep(20);
  }
}

}  // namespace cvops::cuda
