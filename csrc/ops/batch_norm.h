// Entries of batch_norm: the argument checks that both backends call. The arithmetic is in ops/norm_of_channel.h.
#pragma once

#include "ops/activation.h"
#include "ops/common.h"
#include "ops/memory_format.h"
#include "ops/norm_of_channel.h"

namespace cvops {

// The tensors of NormEntries, without gaps.
struct NormTensors {
  std::optional<Tensor> bias;
  Tensor mean, var;
  std::optional<Tensor> gain, offset;

  template <typename S>
  NormEntries<S> entries() const {
    const auto data = [](const std::optional<Tensor>& entry) { return entry ? entry->const_data_ptr<S>() : nullptr; };
    return {data(bias), mean.const_data_ptr<S>(), var.const_data_ptr<S>(), data(gain), data(offset)};
  }
};

// Throw on shapes, dtypes, devices and numbers that do not fit.
CVOPS_API NormTensors check_fold_batch_norm(const Tensor& weight, const std::optional<Tensor>& bias,
    const Tensor& running_mean, const Tensor& running_var, const std::optional<Tensor>& norm_weight,
    const std::optional<Tensor>& norm_bias);
CVOPS_API NormTensors check_frozen_batch_norm(const Tensor& input, const Tensor& running_mean,
    const Tensor& running_var, const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias);
CVOPS_API NormTensors check_batch_norm_act(const Tensor& input, const Tensor& running_mean, const Tensor& running_var,
    const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, int64_t activation);

// Elements of one of the `channels` slices of a tensor along an axis; 0 where there are no channels.
inline int64_t numel_per(int64_t channels, const Tensor& tensor) {
  return channels == 0 ? 0 : tensor.numel() / channels;
}

}  // namespace cvops
