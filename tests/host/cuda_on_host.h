// CUDA's device language for g++: enough of it to compile csrc/cuda/*.{cu,cuh} unchanged and run their kernels on the
// CPU. Injected with -include, so it also provides what <cuda_runtime.h> would. Vector types and intrinsics are in
// cuda_builtins.h, the fibers that play the threads in cuda_on_host.cpp.
//
// Modelled: blocks, warps, barriers, votes and shuffles with masks, atomics, static and dynamic shared memory.
// Not modelled: memory ordering between blocks (blocks run one after another), tensor cores, textures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>

#include "cuda_builtins.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

// --- The block that is running, and the thread of it ---

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_host {

using Where = std::source_location;

enum class Vote { none, any, all, count };
enum class WarpOp { sync, index, up, down, exchange, ballot, match };

// Waits until every thread of the block is here, and returns the vote over `value`.
int block_barrier(Vote vote, int value, Where where);

// Waits until every lane of `mask` is here. `value` is this lane's bits; the result is the selected lane's bits, or the
// mask that a ballot or match gives.
uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Where where);

// Lets the other threads run; a block in which every thread only idles is reported as stuck.
void idle(Where where);

// One shared array of the running block, found by the declaration it belongs to.
void* shared_array(const void* declaration, const char* name, size_t bytes, size_t alignment);
void* dynamic_shared();

struct Kernel {
  void (*run)(const void* arguments);
  const void* arguments;
};
void run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, Kernel kernel);

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void*,
    const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters are limited to 4 KiB");
  auto call = [&] { kernel(arguments...); };
  run_grid(name, grid, block, shared_bytes,
      {[](const void* bound) { (*static_cast<const decltype(call)*>(bound))(); }, &call});
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(
      std::is_trivially_copyable_v<T> && sizeof(T) <= 8 && std::is_arithmetic_v<T>, "a shuffle moves numbers");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_host

// --- The seams of csrc/cuda/launch.h and device.cuh ---

#define CVOPS_LAUNCH(kernel, ...) ::cuda_on_host::launch(#kernel, kernel, __VA_ARGS__)
#define CVOPS_CUDA_KEY CPU

// The static is one per declaration and template instance, like the array that it stands for.
#define CVOPS_SHARED(type, name, count)              \
  static const char name##_declaration = 0;          \
  type(&name)[count] = *static_cast<type(*)[count]>( \
      ::cuda_on_host::shared_array(&name##_declaration, #name, sizeof(type[count]), alignof(type)))
#define CVOPS_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::cuda_on_host::dynamic_shared())

// --- Barriers, votes, shuffles ---

inline void __syncthreads(cuda_on_host::Where where = cuda_on_host::Where::current()) {
  cuda_on_host::block_barrier(cuda_on_host::Vote::none, 0, where);
}
inline int __syncthreads_or(int value, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::block_barrier(cuda_on_host::Vote::any, value, where);
}
inline int __syncthreads_and(int value, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::block_barrier(cuda_on_host::Vote::all, value, where);
}
inline int __syncthreads_count(int value, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::block_barrier(cuda_on_host::Vote::count, value, where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  cuda_on_host::warp_collective(cuda_on_host::WarpOp::sync, mask, 0, 0, 32, where);
}
inline unsigned __ballot_sync(
    unsigned mask, int predicate, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return static_cast<unsigned>(
      cuda_on_host::warp_collective(cuda_on_host::WarpOp::ballot, mask, predicate != 0, 0, 32, where));
}
inline int __any_sync(unsigned mask, int predicate, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return static_cast<unsigned>(
      cuda_on_host::warp_collective(cuda_on_host::WarpOp::match, mask, cuda_on_host::to_bits(value), 0, 32, where));
}
template <typename T>
T __shfl_sync(
    unsigned mask, T value, int source, int width = 32, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::from_bits<T>(cuda_on_host::warp_collective(
      cuda_on_host::WarpOp::index, mask, cuda_on_host::to_bits(value), source, width, where));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
    cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::from_bits<T>(cuda_on_host::warp_collective(
      cuda_on_host::WarpOp::up, mask, cuda_on_host::to_bits(value), static_cast<int>(delta), width, where));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
    cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::from_bits<T>(cuda_on_host::warp_collective(
      cuda_on_host::WarpOp::down, mask, cuda_on_host::to_bits(value), static_cast<int>(delta), width, where));
}
template <typename T>
T __shfl_xor_sync(
    unsigned mask, T value, int lane_mask, int width = 32, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  return cuda_on_host::from_bits<T>(cuda_on_host::warp_collective(
      cuda_on_host::WarpOp::exchange, mask, cuda_on_host::to_bits(value), lane_mask, width, where));
}

inline void __threadfence() {
  __asm__ volatile("" ::: "memory");
}
inline void __threadfence_block() {
  __asm__ volatile("" ::: "memory");
}
inline void __nanosleep(unsigned, cuda_on_host::Where where = cuda_on_host::Where::current()) {
  cuda_on_host::idle(where);
}
