// CPU side of batch_norm: threads, memory formats, instruction set, registration.
#include "ops/batch_norm.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "cpu/fresh_memory.h"
#include "cpu/vec.h"

#define CVOPS_BODY "cpu/batch_norm-inl.h"
#include "cpu/foreach_isa.h"

namespace cvops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;

// Scale and shift of every channel.
template <typename S, typename T = compute_t<S>>
std::pair<std::unique_ptr<T[]>, std::unique_ptr<T[]>> norms_of(const NormTensors& norm, double eps, int64_t channels) {
  std::unique_ptr<T[]> scales(new T[channels]), shifts(new T[channels]);
  CVOPS_CALL_ISA(norm_channels, norm.entries<S>(), static_cast<T>(eps), channels, scales.get(), shifts.get());
  return {std::move(scales), std::move(shifts)};
}

std::tuple<Tensor, Tensor> fold_batch_norm_cpu(const Tensor& weight_in, const std::optional<Tensor>& bias,
    const Tensor& running_mean, const Tensor& running_var, const std::optional<Tensor>& norm_weight,
    const std::optional<Tensor>& norm_bias, double eps) {
  const NormTensors norm = check_fold_batch_norm(weight_in, bias, running_mean, running_var, norm_weight, norm_bias);
  const Tensor weight = dense(weight_in);  // in both formats, the weights of a channel lie in a row
  const Tensor scaled = torch::stable::empty_like(weight), shift = torch::stable::empty_like(norm.mean);
  const int64_t channels = weight.size(0), inner = numel_per(channels, weight);
  CVOPS_DISPATCH_FLOATS(weight.scalar_type(), "fold_batch_norm", [&] {
    using T = compute_t<scalar_t>;
    const auto [scales, shifts] = norms_of<scalar_t>(norm, eps, channels);
    std::copy_n(shifts.get(), channels, shift.mutable_data_ptr<scalar_t>());
    const scalar_t* from = weight.const_data_ptr<scalar_t>();
    scalar_t* to = scaled.mutable_data_ptr<scalar_t>();
    const T* scale = scales.get();
    torch::stable::parallel_for(0, channels, kElementsPerTask / (inner + 1) + 1,
        [&](int64_t begin, int64_t end) { CVOPS_CALL_ISA(scale_channels, from, scale, inner, begin, end, to); });
  });
  return {scaled, shift};
}

// `output` may be `input`.
void apply(const Tensor& input, const NormTensors& norm, double eps, int64_t activation, const Tensor& output) {
  if (input.numel() == 0) return;
  const int64_t channels = input.size(1), batch = input.size(0), pixels = input.numel() / (batch * channels);
  CVOPS_DISPATCH_FLOATS(input.scalar_type(), "batch_norm", [&] {
    const auto [scales, shifts] = norms_of<scalar_t>(norm, eps, channels);
    const auto *scale = scales.get(), *shift = shifts.get();
    const scalar_t* from = input.const_data_ptr<scalar_t>();
    scalar_t* to = output.mutable_data_ptr<scalar_t>();
    if (is_channels_last(input)) {
      torch::stable::parallel_for(0, batch * pixels, kElementsPerTask / channels + 1, [&](int64_t begin, int64_t end) {
        CVOPS_CALL_ISA(norm_act_pixels, from, to, scale, shift, channels, activation, begin, end);
      });
    } else {
      torch::stable::parallel_for(0, batch * channels, kElementsPerTask / pixels + 1, [&](int64_t begin, int64_t end) {
        CVOPS_CALL_ISA(norm_act_planes, from, to, scale, shift, channels, pixels, activation, begin, end);
      });
    }
  });
}

Tensor frozen_batch_norm_cpu(const Tensor& input_in, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps) {
  const NormTensors norm = check_frozen_batch_norm(input_in, running_mean, running_var, norm_weight, norm_bias);
  const Tensor input = dense(input_in), output = new_output_like(input);
  apply(input, norm, eps, kNoActivation, output);
  return output;
}

void batch_norm_act_cpu(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps, int64_t activation) {
  const NormTensors norm = check_batch_norm_act(input, running_mean, running_var, norm_weight, norm_bias, activation);
  apply(input, norm, eps, activation, input);
}

}  // namespace
}  // namespace cvops

STABLE_TORCH_LIBRARY_IMPL(cvops, CPU, m) {
  m.impl("fold_batch_norm", TORCH_BOX(&cvops::fold_batch_norm_cpu));
  m.impl("frozen_batch_norm", TORCH_BOX(&cvops::frozen_batch_norm_cpu));
  m.impl("batch_norm_act_", TORCH_BOX(&cvops::batch_norm_act_cpu));
}
