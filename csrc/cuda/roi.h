// What the launchers of the RoI ops share: strides, outputs.
#pragma once

#include "cuda/launch.h"
#include "cuda/roi.cuh"
#include "ops/memory_format.h"

namespace cvops::cuda {

using torch::headeronly::MemoryFormat;

inline Tensor new_maps(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, ScalarType type, bool last) {
  const int64_t shape[] = {n, c, h, w};
  return torch::stable::empty({shape, 4}, type, std::nullopt, like.device(), std::nullopt,
      last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

inline MapStrides map_strides(int64_t c, int64_t h, int64_t w, bool channels_last) {
  return channels_last ? MapStrides{c * h * w, 1, w * c, c} : MapStrides{c * h * w, h * w, w, 1};
}

// RoIs in the compute type.
inline Tensor computed_rois(const Tensor& rois, ScalarType type) {
  return torch::stable::to(torch::stable::contiguous(rois), compute_type(type));
}

}  // namespace cvops::cuda
