// The arithmetic of batch_norm that both backends share: what a batch norm of fixed statistics does to one channel.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/host_device.h"

namespace cvops {

// Each [channels]. `bias` is that of the layer before the norm; bias, gain and offset may be null, for 0, 1 and 0.
template <typename S>
struct NormEntries {
  const S *bias, *mean, *var, *gain, *offset;
};

template <typename T>
struct Affine {
  T scale, shift;
};

template <typename T, typename S>
HOST_DEVICE Affine<T> norm_of_channel(const NormEntries<S>& norm, T eps, int64_t c) {
  const T var = static_cast<T>(norm.var[c]), gain = norm.gain ? static_cast<T>(norm.gain[c]) : T(1);
  const T bias = norm.bias ? static_cast<T>(norm.bias[c]) : T(0);
  const T offset = norm.offset ? static_cast<T>(norm.offset[c]) : T(0);
  const T centred = sub_rn(bias, static_cast<T>(norm.mean[c]));
  const T scale = div_rn(gain, std::sqrt(add_rn(var, eps)));
  return {scale, add_rn(mul_rn(centred, scale), offset)};
}

}  // namespace cvops
