// CUDA side of corner_pool: launches and registration. Kernels are in cuda/corner_pool.cuh.
#include "ops/corner_pool.h"

#include <initializer_list>
#include <limits>

#include "cuda/corner_pool.cuh"
#include "cuda/launch.h"

namespace cvops::cuda {
namespace {

constexpr int64_t kEnoughThreads = 1 << 15;  // below that, columns one by one are more threads

bool aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// run<N>(threads), where N elements are one pack of 16 bytes if the lines allow it, or one element; `maps` are what the
// kernels read and write. Columns have neighbours in one pack, rows a piece of one line.
template <typename S, typename Run>
void with_packs(const CornerLines& lines, std::initializer_list<Tensor> maps, const Run& run) {
  constexpr int pack = 16 / sizeof(S);
  const bool rows = lines.inner == 1;
  bool whole =
      (rows ? lines.length : lines.inner) % pack == 0 && (rows || lines.outer * lines.inner / pack >= kEnoughThreads);
  for (const Tensor& map : maps) whole = whole && aligned(map);
  if (whole) {
    run.template operator()<pack>(rows ? lines.outer * kWarp : lines.outer * lines.inner / pack);
  } else {
    run.template operator()<1>(rows ? lines.outer * kWarp : lines.outer * lines.inner);
  }
}

template <typename T>
constexpr T least_value() {
  return -std::numeric_limits<T>::infinity();
}

// values: null for the maximum itself.
Tensor carried(const DeviceScope& scope, const Tensor& input, const Tensor* values, int64_t direction) {
  Tensor out = torch::stable::empty_like(input);
  if (out.numel() == 0) return out;
  const CornerLines lines = corner_lines(input, direction);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "corner_pool", [&] {
    using T = compute_t<scalar_t>;
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    const scalar_t* moved = values ? values->const_data_ptr<scalar_t>() : nullptr;
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    with_packs<scalar_t>(lines, {input, values ? *values : input, out}, [&]<int N>(int64_t threads) {
      const unsigned grid = blocks_for(threads, kCornerThreads);
      const auto run = [&]<bool gather>() {
        if (lines.inner == 1 && lines.reverse) {
          CVOPS_LAUNCH((carry_rows_kernel<N, true, gather, scalar_t, T>), grid, kCornerThreads, 0, scope.stream(), from,
              moved, lines, least_value<T>(), to);
        } else if (lines.inner == 1) {
          CVOPS_LAUNCH((carry_rows_kernel<N, false, gather, scalar_t, T>), grid, kCornerThreads, 0, scope.stream(),
              from, moved, lines, least_value<T>(), to);
        } else {
          CVOPS_LAUNCH((carry_columns_kernel<N, gather, scalar_t, T>), grid, kCornerThreads, 0, scope.stream(), from,
              moved, lines, least_value<T>(), to);
        }
      };
      values ? run.template operator()<true>() : run.template operator()<false>();
    });
  });
  return out;
}

Tensor corner_pool_cuda(const Tensor& input, int64_t direction) {
  check_corner_pool(input, direction);
  const DeviceScope scope(input);
  return carried(scope, dense(input), nullptr, direction);
}

Tensor corner_pool_gather_cuda(const Tensor& values_in, const Tensor& input_in, int64_t direction) {
  check_corner_moves("corner_pool_gather", "values", values_in, input_in, direction);
  const DeviceScope scope(input_in);
  const Tensor input = dense(input_in), values = in_format(values_in, is_channels_last(input));
  return carried(scope, input, &values, direction);
}

Tensor corner_pool_backward_cuda(const Tensor& grad_in, const Tensor& input_in, int64_t direction) {
  check_corner_moves("corner_pool_backward", "grad", grad_in, input_in, direction);
  const DeviceScope scope(input_in);
  const Tensor input = dense(input_in), grad = in_format(grad_in, is_channels_last(input));
  Tensor out = torch::stable::empty_like(input);
  if (out.numel() == 0) return out;
  const CornerLines lines = corner_lines(input, direction);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "corner_pool_backward", [&] {
    using T = compute_t<scalar_t>;
    with_packs<scalar_t>(lines, {input, grad, out}, [&]<int N>(int64_t threads) {
      const unsigned grid = blocks_for(threads, kCornerThreads);
      const scalar_t *slope = grad.const_data_ptr<scalar_t>(), *from = input.const_data_ptr<scalar_t>();
      scalar_t* to = out.mutable_data_ptr<scalar_t>();
      constexpr T most = largest_gradient<scalar_t, T>();
      if (lines.inner == 1 && lines.reverse) {
        CVOPS_LAUNCH((spread_rows_kernel<N, true, scalar_t, T>), grid, kCornerThreads, 0, scope.stream(), slope, from,
            lines, least_value<T>(), most, to);
      } else if (lines.inner == 1) {
        CVOPS_LAUNCH((spread_rows_kernel<N, false, scalar_t, T>), grid, kCornerThreads, 0, scope.stream(), slope, from,
            lines, least_value<T>(), most, to);
      } else {
        // Four columns to a thread at most: eight would not fit into its registers.
        constexpr int columns = N < 4 ? N : 4;
        CVOPS_LAUNCH((spread_columns_kernel<columns, scalar_t, T>),
            blocks_for(lines.outer * lines.inner / columns, kCornerThreads), kCornerThreads, 0, scope.stream(), slope,
            from, lines, least_value<T>(), most, to);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("corner_pool", TORCH_BOX(&cvops::cuda::corner_pool_cuda));
  m.impl("corner_pool_backward", TORCH_BOX(&cvops::cuda::corner_pool_backward_cuda));
  m.impl("corner_pool_gather", TORCH_BOX(&cvops::cuda::corner_pool_gather_cuda));
}
