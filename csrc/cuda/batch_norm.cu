// CUDA side of batch_norm: launches and registration. Kernels are in cuda/batch_norm.cuh.
#include "ops/batch_norm.h"

#include "cuda/batch_norm.cuh"
#include "cuda/launch.h"

namespace cvops::cuda {
namespace {

std::tuple<Tensor, Tensor> fold_batch_norm_cuda(const Tensor& weight_in, const std::optional<Tensor>& bias,
    const Tensor& running_mean, const Tensor& running_var, const std::optional<Tensor>& norm_weight,
    const std::optional<Tensor>& norm_bias, double eps) {
  const NormTensors norm = check_fold_batch_norm(weight_in, bias, running_mean, running_var, norm_weight, norm_bias);
  const DeviceScope scope(weight_in);
  const Tensor weight = dense(weight_in);  // in both formats, the weights of a channel lie in a row
  Tensor scaled = torch::stable::empty_like(weight), shift = torch::stable::empty_like(norm.mean);
  const int64_t channels = weight.size(0), inner = numel_per(channels, weight);
  CVOPS_DISPATCH_FLOATS(weight.scalar_type(), "fold_batch_norm", [&] {
    using T = compute_t<scalar_t>;
    CVOPS_LAUNCH((fold_batch_norm_kernel<scalar_t, T>), blocks_for(channels, 1), kFoldThreads, 0, scope.stream(),
        weight.const_data_ptr<scalar_t>(), norm.entries<scalar_t>(), static_cast<T>(eps), channels, inner,
        scaled.mutable_data_ptr<scalar_t>(), shift.mutable_data_ptr<scalar_t>());
  });
  return {scaled, shift};
}

// `output` may be `input`.
void apply(const Tensor& input, const NormTensors& norm, double eps, int64_t activation, const Tensor& output) {
  const int64_t numel = input.numel();
  if (numel == 0) return;
  const DeviceScope scope(input);
  const auto is_aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  };
  const bool last = is_channels_last(input), aligned = is_aligned(input) && is_aligned(output);
  const int64_t channels = input.size(1), pixels = numel / (input.size(0) * channels);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "batch_norm", [&] {
    using T = compute_t<scalar_t>;
    constexpr int pack = 16 / sizeof(scalar_t);
    Tensor buffer = torch::stable::new_empty(norm.mean, {channels, 2}, compute_type(input.scalar_type()));
    Affine<T>* const norms = reinterpret_cast<Affine<T>*>(buffer.mutable_data_ptr<T>());
    CVOPS_LAUNCH((norm_channels_kernel<scalar_t, T>), blocks_for(channels, kNormActThreads), kNormActThreads, 0,
        scope.stream(), norm.entries<scalar_t>(), static_cast<T>(eps), channels, norms);
    const auto run = [&]<int N, bool channels_last>() {
      CVOPS_LAUNCH((norm_act_kernel<N, channels_last, scalar_t, T>), blocks_for(numel / N, kNormActThreads),
          kNormActThreads, 0, scope.stream(), input.const_data_ptr<scalar_t>(), output.mutable_data_ptr<scalar_t>(),
          static_cast<const Affine<T>*>(norms), static_cast<int>(activation), numel / N, channels, pixels);
    };
    if (aligned && (last ? channels : pixels) % pack == 0) {
      last ? run.template operator()<pack, true>() : run.template operator()<pack, false>();
    } else {
      last ? run.template operator()<1, true>() : run.template operator()<1, false>();
    }
  });
}

Tensor frozen_batch_norm_cuda(const Tensor& input_in, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps) {
  const NormTensors norm = check_frozen_batch_norm(input_in, running_mean, running_var, norm_weight, norm_bias);
  const Tensor input = dense(input_in), output = torch::stable::empty_like(input);
  apply(input, norm, eps, kNoActivation, output);
  return output;
}

void batch_norm_act_cuda(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps, int64_t activation) {
  const NormTensors norm = check_batch_norm_act(input, running_mean, running_var, norm_weight, norm_bias, activation);
  apply(input, norm, eps, activation, input);
}

}  // namespace
}  // namespace cvops::cuda

STABLE_TORCH_LIBRARY_IMPL(cvops, CVOPS_CUDA_KEY, m) {
  m.impl("fold_batch_norm", TORCH_BOX(&cvops::cuda::fold_batch_norm_cuda));
  m.impl("frozen_batch_norm", TORCH_BOX(&cvops::cuda::frozen_batch_norm_cuda));
  m.impl("batch_norm_act_", TORCH_BOX(&cvops::cuda::batch_norm_act_cuda));
}
