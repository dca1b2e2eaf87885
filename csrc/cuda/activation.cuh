// The activations of ops/activation.h on the device. NaN passes through.
#pragma once

#include "cuda/device.cuh"
#include "ops/activation.h"

namespace cvops::cuda {

template <typename T>
__device__ __forceinline__ T activate(T x, int activation) {
  const T positive = x < T(0) ? T(0) : x;
  if (activation == kRelu) return positive;
  if (activation == kRelu6) return positive > T(6) ? T(6) : positive;
  if (activation == kSilu) return x / (T(1) + exp_of(-x));
  if (activation == kHardswish) {
    const T shifted = x + T(3), low = shifted < T(0) ? T(0) : shifted;
    return x * (low > T(6) ? T(6) : low) / T(6);
  }
  return x;
}

}  // namespace cvops::cuda
