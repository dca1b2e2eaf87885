// Schemas and argument checks of batch_norm. Names of activations are resolved in cvops/ops/batch_norm.py.
#include "ops/batch_norm.h"

namespace cvops {
namespace {

Tensor checked(
    const char* op, const char* name, const Tensor& entry, const char* subject, const Tensor& of, int64_t channels) {
  CVOPS_CHECK(entry.dim() == 1 && entry.size(0) == channels, op, ": ", name, " must be [", channels,
      "], one number per channel of ", subject, ", got ", shape_of(entry));
  check_same_kind(op, name, entry, subject, of);
  return entry.is_contiguous() ? entry : torch::stable::contiguous(entry);
}

std::optional<Tensor> checked(const char* op, const char* name, const std::optional<Tensor>& entry, const char* subject,
    const Tensor& of, int64_t channels) {
  return entry ? std::optional<Tensor>(checked(op, name, *entry, subject, of, channels)) : std::nullopt;
}

// Those of a norm that goes over maps [N, C, ...].
NormTensors check_maps(const char* op, const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias) {
  CVOPS_CHECK(input.dim() >= 2, op, ": input must be [N, C, ...] with at least 2 dimensions, got ", shape_of(input));
  check_floating(op, "input", input);
  const auto entry = [&](const char* name, const auto& tensor) {
    return checked(op, name, tensor, "input", input, input.size(1));
  };
  return {std::nullopt, entry("running_mean", running_mean), entry("running_var", running_var),
      entry("norm_weight", norm_weight), entry("norm_bias", norm_bias)};
}

}  // namespace

NormTensors check_fold_batch_norm(const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& running_mean,
    const Tensor& running_var, const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias) {
  constexpr const char* op = "fold_batch_norm";
  CVOPS_CHECK(weight.dim() >= 2, op, ": weight must be [C, ...] with at least 2 dimensions, got ", shape_of(weight));
  check_floating(op, "weight", weight);
  const auto entry = [&](const char* name, const auto& tensor) {
    return checked(op, name, tensor, "weight", weight, weight.size(0));
  };
  return {entry("bias", bias), entry("running_mean", running_mean), entry("running_var", running_var),
      entry("norm_weight", norm_weight), entry("norm_bias", norm_bias)};
}

NormTensors check_frozen_batch_norm(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias) {
  return check_maps("frozen_batch_norm", input, running_mean, running_var, norm_weight, norm_bias);
}

NormTensors check_batch_norm_act(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, int64_t activation) {
  constexpr const char* op = "batch_norm_act_";
  const NormTensors norm = check_maps(op, input, running_mean, running_var, norm_weight, norm_bias);
  CVOPS_CHECK(input.is_contiguous() || is_channels_last(input), op,
      ": input must be contiguous or channels_last, as it is changed in place");
  CVOPS_CHECK(activation >= 0 && activation < kActivations, op, ": activation must be 0 to ", kActivations - 1,
      ", got ", activation);
  return norm;
}

}  // namespace cvops

STABLE_TORCH_LIBRARY_FRAGMENT(cvops, m) {
  m.def(
      "fold_batch_norm(Tensor weight, Tensor? bias, Tensor running_mean, Tensor running_var, Tensor? norm_weight, "
      "Tensor? norm_bias, float eps) -> (Tensor, Tensor)");
  m.def(
      "frozen_batch_norm(Tensor input, Tensor running_mean, Tensor running_var, Tensor? norm_weight, "
      "Tensor? norm_bias, float eps) -> Tensor");
  m.def(
      "batch_norm_act_(Tensor(a!) input, Tensor running_mean, Tensor running_var, Tensor? norm_weight, "
      "Tensor? norm_bias, float eps, int activation) -> ()");
}
