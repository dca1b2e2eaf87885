// Memory of large outputs and scratch buffers. A new allocation of tens of megabytes is paid for in page faults, often
// several times the kernel that fills it (docs/benchmarks.md): 2 MB pages remove most of that, and keeping a few freed
// blocks for the next call removes the rest.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/common.h"

namespace cvops {

using torch::headeronly::IntHeaderOnlyArrayRef;

// Asks for 2 MB pages. Call before the first write; silent where unsupported.
void advise_huge_pages(void* data, size_t bytes);

// An uninitialised output on the CPU, contiguous or (rank 4) channels_last. From kLargeBytes on it is a block of
// fresh_memory.cpp, which keeps freed blocks up to CVOPS_CPU_CACHE_MB megabytes (1024 if unset, 0 keeps none).
constexpr int64_t kLargeBytes = 8 << 20;
Tensor new_output(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType type, bool channels_last = false);
inline Tensor new_output(const Tensor& like, IntHeaderOnlyArrayRef sizes) {
  return new_output(like, sizes, like.scalar_type());
}

// Maps [n, c, h, w].
inline Tensor new_maps(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, ScalarType type, bool last) {
  const int64_t shape[] = {n, c, h, w};
  return new_output(like, {shape, 4}, type, last);
}

// The same with the sizes, strides and dtype of `dense`, which has no gaps (ops/memory_format.h).
Tensor new_output_like(const Tensor& dense);

}  // namespace cvops
