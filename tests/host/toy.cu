// Small kernels that exercise the shim, each able to commit the fault that the shim must catch. The ops of the package
// are in csrc; this file compiles with nvcc too.
#include "cuda/device.cuh"
#include "cuda/launch.h"

#include <torch/headeronly/core/Dispatch.h>

namespace cvops::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 64;

Tensor empty_like_on(const Tensor& tensor, int64_t size, ScalarType type) {
  return torch::stable::new_empty(tensor, {size}, type);
}

// Reverses each run of 64 values through shared memory.
template <typename T>
__global__ void reverse_kernel(const T* x, T* y, int64_t n, bool barrier) {
  CVOPS_SHARED(T, tile, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads;
  const int64_t run = n - base < kThreads ? n - base : kThreads;
  if (t < run) tile[t] = x[base + t];
  if (barrier) __syncthreads();
  if (t < run) y[base + t] = tile[run - 1 - t];
}

Tensor reverse(const Tensor& x, bool barrier) {
  const DeviceScope scope(x);
  Tensor y = torch::stable::empty_like(x);
  const int64_t n = x.numel();
  THO_DISPATCH_SWITCH(x.scalar_type(), "reverse", THO_DISPATCH_CASE(ScalarType::Float, [&] {
    CVOPS_LAUNCH(reverse_kernel<scalar_t>, blocks_for(n, kThreads), kThreads, 0, scope.stream(),
        x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), n, barrier);
  }) THO_DISPATCH_CASE(ScalarType::Half, [&] {
    CVOPS_LAUNCH(reverse_kernel<scalar_t>, blocks_for(n, kThreads), kThreads, 0, scope.stream(),
        x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>(), n, barrier);
  }));
  return y;
}

// One sum per run of 64 values. With `leave_early`, threads past the end return before the barriers.
template <int Threads>
__global__ void block_sums_kernel(const float* x, float* sums, int64_t n, bool leave_early) {
  const int64_t i = grid_index();
  if (leave_early && i >= n) return;
  const float total = block_sum<Threads>(i < n ? x[i] : 0.0f);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

Tensor block_sums(const Tensor& x, bool leave_early) {
  const DeviceScope scope(x);
  const int64_t n = x.numel(), blocks = blocks_for(n, kThreads);
  Tensor sums = empty_like_on(x, blocks, ScalarType::Float);
  CVOPS_LAUNCH((block_sums_kernel<kThreads>), static_cast<unsigned>(blocks), kThreads, 0, scope.stream(),
      x.const_data_ptr<float>(), sums.mutable_data_ptr<float>(), n, leave_early);
  return sums;
}

// Half the block waits in one place, half in another.
__global__ void two_barriers_kernel(float* x) {
  if (threadIdx.x < blockDim.x / 2) {
    x[threadIdx.x] += 1.0f;
    __syncthreads();
  } else {
    x[threadIdx.x] += 2.0f;
    __syncthreads();
  }
}

Tensor two_barriers(const Tensor& x) {
  const DeviceScope scope(x);
  Tensor y = torch::stable::clone(x);
  CVOPS_LAUNCH(
      two_barriers_kernel, 1, static_cast<unsigned>(x.numel()), 0, scope.stream(), y.mutable_data_ptr<float>());
  return y;
}

// Per value: how many lanes before it in its warp hold a positive value, the warp's largest value, the value 3 lanes
// up, and the number of positive values in the block.
__global__ void warp_facts_kernel(const float* x, float* facts, int64_t n) {
  const int64_t i = grid_index();
  const float value = i < n ? x[i] : 0.0f;
  const unsigned positive = __ballot_sync(kAllLanes, value > 0.0f);
  const int before = __popc(positive & ((1u << lane()) - 1u));
  const float largest = warp_max(value);
  const float up = __shfl_up_sync(kAllLanes, value, 3);
  const int count = __syncthreads_count(value > 0.0f);
  if (i < n) {
    const Pack<float, 4> fact{{static_cast<float>(before), largest, up, static_cast<float>(count)}};
    store_pack(facts + 4 * i, fact);
  }
}

Tensor warp_facts(const Tensor& x) {
  const DeviceScope scope(x);
  Tensor facts = torch::stable::new_empty(x, {x.numel(), 4});
  CVOPS_LAUNCH(warp_facts_kernel, blocks_for(x.numel(), kThreads), kThreads, 0, scope.stream(),
      x.const_data_ptr<float>(), facts.mutable_data_ptr<float>(), x.numel());
  return facts;
}

// Half the lanes name the other half in their shuffle's mask.
__global__ void half_mask_kernel(float* x) {
  if (lane() < 16) x[threadIdx.x] = __shfl_xor_sync(kAllLanes, x[threadIdx.x], 1);
}

Tensor half_mask(const Tensor& x) {
  const DeviceScope scope(x);
  Tensor y = torch::stable::clone(x);
  CVOPS_LAUNCH(half_mask_kernel, 1, kWarp, 0, scope.stream(), y.mutable_data_ptr<float>());
  return y;
}

// Counts of the values 0 to bins - 1, gathered in dynamic shared memory first.
__global__ void histogram_kernel(const int64_t* x, int* counts, int64_t n, int bins) {
  CVOPS_DYNAMIC_SHARED(int, local);
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += kThreads) local[b] = 0;
  __syncthreads();
  for (int64_t i = grid_index(); i < n; i += grid_stride()) atomicAdd(&local[x[i]], 1);
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += kThreads) atomicAdd(&counts[b], local[b]);
}

Tensor histogram(const Tensor& x, int64_t bins) {
  const DeviceScope scope(x);
  Tensor counts = empty_like_on(x, bins, ScalarType::Int);
  fill_bytes(counts.mutable_data_ptr(), 0, static_cast<size_t>(bins) * sizeof(int), scope.stream());
  CVOPS_LAUNCH(histogram_kernel, 3, kThreads, static_cast<size_t>(bins) * sizeof(int), scope.stream(),
      x.const_data_ptr<int64_t>(), counts.mutable_data_ptr<int>(), x.numel(), static_cast<int>(bins));
  return counts;
}

// Prefix sum in one launch: each block takes a ticket and waits for the total that the ticket before it publishes.
// Values are at least 0, so -1 means "not yet". With `withhold`, nobody publishes.
__global__ void prefix_sum_kernel(const int* x, int* y, int* ticket, int* totals, int64_t n, bool withhold) {
  CVOPS_SHARED(int, tile, kThreads);
  CVOPS_SHARED(int, carried, 2);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) carried[0] = atomicAdd(ticket, 1);
  __syncthreads();
  const int mine = carried[0];
  const int64_t i = static_cast<int64_t>(mine) * kThreads + t;
  tile[t] = i < n ? x[i] : 0;
  __syncthreads();
  int sum = 0;
  for (int j = 0; j <= t; ++j) sum += tile[j];
  if (t == kThreads - 1) {
    carried[1] = mine == 0 ? 0 : await<1>(&totals[mine - 1], -1).at[0];
    if (!withhold) publish(&totals[mine], carried[1] + sum);
  }
  __syncthreads();
  if (i < n) y[i] = carried[1] + sum;
}

Tensor prefix_sum(const Tensor& x, bool withhold) {
  const DeviceScope scope(x);
  const int64_t n = x.numel(), blocks = blocks_for(n, kThreads);
  Tensor y = torch::stable::empty_like(x);
  Tensor state = empty_like_on(x, blocks + 1, ScalarType::Int);
  int* totals = state.mutable_data_ptr<int>();
  fill_bytes(totals, 0xff, static_cast<size_t>(blocks) * sizeof(int), scope.stream());
  fill_bytes(totals + blocks, 0, sizeof(int), scope.stream());
  CVOPS_LAUNCH(prefix_sum_kernel, static_cast<unsigned>(blocks), kThreads, 0, scope.stream(), x.const_data_ptr<int>(),
      y.mutable_data_ptr<int>(), totals + blocks, totals, n, withhold);
  return y;
}

// Writes one element past the end of an array: 0 none, 1 static shared memory, 2 dynamic shared memory, 3 the output.
__global__ void overflow_kernel(float* y, int n, int where) {
  CVOPS_SHARED(float, fixed, kThreads);
  CVOPS_DYNAMIC_SHARED(float, flexible);
  const int t = static_cast<int>(threadIdx.x);
  fixed[t + (where == 1)] = 1.0f;
  flexible[t + (where == 2)] = 2.0f;
  __syncthreads();
  if (t < n) y[t + (where == 3)] = fixed[t] + flexible[t];
}

Tensor overflow(const Tensor& x, int64_t where) {
  const DeviceScope scope(x);
  Tensor y = torch::stable::empty_like(x);
  CVOPS_LAUNCH(overflow_kernel, 1, kThreads, kThreads * sizeof(float), scope.stream(), y.mutable_data_ptr<float>(),
      static_cast<int>(x.numel()), static_cast<int>(where));
  return y;
}

// Loads 16 bytes from an address that is only a multiple of 4.
__global__ void misaligned_kernel(const float* x, float* y, int offset) {
  store_pack(y, load_pack<4>(x + offset));
}

Tensor load_at(const Tensor& x, int64_t offset) {
  const DeviceScope scope(x);
  Tensor y = empty_like_on(x, 4, ScalarType::Float);
  CVOPS_LAUNCH(misaligned_kernel, 1, 1, 0, scope.stream(), x.const_data_ptr<float>(), y.mutable_data_ptr<float>(),
      static_cast<int>(offset));
  return y;
}

// A launch that no device accepts.
Tensor too_many_threads(const Tensor& x) {
  const DeviceScope scope(x);
  Tensor y = torch::stable::clone(x);
  CVOPS_LAUNCH(half_mask_kernel, 1, 2048, 0, scope.stream(), y.mutable_data_ptr<float>());
  return y;
}

// The order of x from large to small, and its first index read back on the host.
std::tuple<Tensor, int64_t> order_of(const Tensor& x) {
  const DeviceScope scope(x);
  const Sorted sorted = sort_stable(x, 0, true);
  int64_t first = 0;
  read_back(&first, sorted.indices.const_data_ptr<int64_t>(), 1, scope.stream());
  return {sorted.indices, first};
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY(cvops_toy, m) {
  m.def("reverse(Tensor x, bool barrier) -> Tensor");
  m.def("block_sums(Tensor x, bool leave_early) -> Tensor");
  m.def("two_barriers(Tensor x) -> Tensor");
  m.def("warp_facts(Tensor x) -> Tensor");
  m.def("half_mask(Tensor x) -> Tensor");
  m.def("histogram(Tensor x, int bins) -> Tensor");
  m.def("prefix_sum(Tensor x, bool withhold) -> Tensor");
  m.def("overflow(Tensor x, int where) -> Tensor");
  m.def("load_at(Tensor x, int offset) -> Tensor");
  m.def("too_many_threads(Tensor x) -> Tensor");
  m.def("order_of(Tensor x) -> (Tensor, int)");
}

STABLE_TORCH_LIBRARY_IMPL(cvops_toy, CVOPS_CUDA_KEY, m) {
  using namespace cvops::cuda;
  m.impl("reverse", TORCH_BOX(&reverse));
  m.impl("block_sums", TORCH_BOX(&block_sums));
  m.impl("two_barriers", TORCH_BOX(&two_barriers));
  m.impl("warp_facts", TORCH_BOX(&warp_facts));
  m.impl("half_mask", TORCH_BOX(&half_mask));
  m.impl("histogram", TORCH_BOX(&histogram));
  m.impl("prefix_sum", TORCH_BOX(&prefix_sum));
  m.impl("overflow", TORCH_BOX(&overflow));
  m.impl("load_at", TORCH_BOX(&load_at));
  m.impl("too_many_threads", TORCH_BOX(&too_many_threads));
  m.impl("order_of", TORCH_BOX(&order_of));
}
