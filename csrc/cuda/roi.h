// What the launchers of the RoI ops share.
#pragma once

#include "cuda/launch.h"
#include "cuda/roi.cuh"
#include "ops/memory_format.h"

namespace cvops::cuda {

// Outputs from which a thread computes several: fewer would leave multiprocessors without work.
constexpr int64_t kManyValues = int64_t{1} << 20;

inline MapStrides map_strides(int64_t c, int64_t h, int64_t w, bool channels_last) {
  return channels_last ? MapStrides{c * h * w, 1, w * c, c} : MapStrides{c * h * w, h * w, w, 1};
}

}  // namespace cvops::cuda
