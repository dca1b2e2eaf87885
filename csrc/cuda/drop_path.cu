// CUDA side of drop_path: launches and registration. Kernels are in cuda/drop_path.cuh. The seed stays on the device.
#include "ops/drop_path.h"

#include "cuda/drop_path.cuh"
#include "cuda/launch.h"
#include "ops/memory_format.h"

namespace cvops::cuda {
namespace {

Tensor drop_path_cuda(const Tensor& input_in, const Tensor& seed, int64_t leading, double p, double scale) {
  const int64_t groups = check_drop_path(input_in, seed, leading, p, scale);
  const DeviceScope scope(input_in);
  const Tensor input = dense(input_in);
  Tensor out = torch::stable::empty_like(input);
  const int64_t numel = input.numel();
  if (numel == 0) return out;
  const int64_t inner = numel / groups, channels = leading == 2 ? input.size(1) : 1;
  const bool last = leading == 2 && is_channels_last(input),
             aligned = (reinterpret_cast<uintptr_t>(input.const_data_ptr()) |
                           reinterpret_cast<uintptr_t>(out.const_data_ptr())) %
                           16 ==
                       0;
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "drop_path", [&] {
    using T = compute_t<scalar_t>;
    constexpr int pack = 16 / sizeof(scalar_t);
    Tensor factors = torch::stable::new_empty(input, {groups}, compute_type(input.scalar_type()));
    CVOPS_LAUNCH((group_factors_kernel<T>), blocks_for(groups, kDropPathThreads), kDropPathThreads, 0, scope.stream(),
        seed.const_data_ptr<int64_t>(), chance_of(p), T(scale), groups, factors.mutable_data_ptr<T>());
    const auto run = [&]<int N, bool channels_last>() {
      CVOPS_LAUNCH((scale_groups_kernel<N, channels_last, scalar_t, T>),
          blocks_for((numel + N - 1) / N, kDropPathThreads), kDropPathThreads, 0, scope.stream(),
          input.const_data_ptr<scalar_t>(), factors.const_data_ptr<T>(), numel, inner, channels,
          out.mutable_data_ptr<scalar_t>());
    };
    if (aligned && (!last || channels % pack == 0)) {
      last ? run.template operator()<pack, true>() : run.template operator()<pack, false>();
    } else {
      last ? run.template operator()<1, true>() : run.template operator()<1, false>();
    }
  });
  return out;
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("drop_path", TORCH_BOX(&cvops::cuda::drop_path_cuda));
}
