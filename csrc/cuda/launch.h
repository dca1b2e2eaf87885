// The host side of a CUDA op: device and stream, checked launches, the one way to read a result back, and torch's sort.
// Only .cu files include this; what runs on the device is in the .cuh files and in cuda/device.cuh.
//
// Seams, for a build that runs kernels elsewhere than on a GPU: CVOPS_LAUNCH and CVOPS_CUDA_KEY may be defined
// beforehand; everything else goes through the CUDA runtime and torch's C shim.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Half.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

// The dispatch key that kernels register under: STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m).
#ifndef CVOPS_CUDA_KEY
#define CVOPS_CUDA_KEY CUDA
#endif

// torch 2.11 has it under this name.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace cvops::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) [[unlikely]] {
    cudaGetLastError();  // the runtime remembers it for the next who asks, whom it does not concern
    throw std::runtime_error(std::string("CUDA error in ") + what + ": " + cudaGetErrorString(status));
  }
}

// Makes the tensor's device current for the life of an op call, and holds the stream that torch runs on there.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    const int32_t index = tensor.get_device_index();
    // torch's guard speaks to torch's copy of the CUDA runtime; this library links a static copy of its own.
    check(cudaSetDevice(index), "cudaSetDevice");
    void* handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &handle));
    stream_ = static_cast<cudaStream_t>(handle);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// The tensor itself if it is contiguous and starts at a multiple of 16 bytes, as vector loads need; a copy otherwise.
inline torch::stable::Tensor packed(const torch::stable::Tensor& tensor) {
  const torch::stable::Tensor contiguous = torch::stable::contiguous(tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return aligned ? contiguous : torch::stable::clone(contiguous);
}

// Blocks needed for `items` at `per_block` each. Past the grid limit the kernel's own stride loop takes over.
inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  constexpr int64_t limit = std::numeric_limits<int32_t>::max();
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

// The value at which a gradient of dtype In, computed in T, saturates: float16's largest finite one, since a steep but
// finite slope must not become an infinity; none for the other dtypes.
template <typename In, typename T>
constexpr T largest_gradient() {
  return std::is_same_v<In, torch::headeronly::Half> ? T(65504) : std::numeric_limits<T>::infinity();
}

// CVOPS_LAUNCH((kernel<T, 4>), grid, block, shared_bytes, stream, arguments...); an empty grid is no launch.
#ifndef CVOPS_LAUNCH
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
    cudaStream_t stream, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr size_t without_opt_in = 48 << 10;
  if (shared_bytes > without_opt_in) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        name);
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError(), name);
}
#define CVOPS_LAUNCH(kernel, ...) ::cvops::cuda::launch(#kernel, kernel, __VA_ARGS__)
#endif

inline void fill_bytes(void* device, int byte, size_t bytes, cudaStream_t stream) {
  if (bytes != 0) check(cudaMemsetAsync(device, byte, bytes, stream), "cudaMemsetAsync");
}

// Copies `count` values to the host and waits for them. The only place where an op waits for the device.
template <typename T>
void read_back(T* host, const T* device, size_t count, cudaStream_t stream) {
  check(cudaMemcpyAsync(host, device, count * sizeof(T), cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

struct Sorted {
  torch::stable::Tensor values, indices;
};

// torch.sort(keys, stable=True): equal keys keep their order, and NaN counts as the largest.
inline Sorted sort_stable(const torch::stable::Tensor& keys, int64_t dim, bool descending) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(dim), from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {to<torch::stable::Tensor>(stack[0]), to<torch::stable::Tensor>(stack[1])};
}

// to = a b, of matrices with any strides.
inline void multiply_into(
    const torch::stable::Tensor& to, const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(to)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<torch::stable::Tensor>(stack[0]);  // the same tensor, which the call returns owned
}

}  // namespace cvops::cuda
