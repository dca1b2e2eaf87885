// The two memory formats, contiguous and channels_last: which one a tensor has, which one an output gets.
#pragma once

#include "ops/common.h"

namespace cvops {

// Dense with the channels of [N, C, ...] innermost, and not contiguous as well.
inline bool is_channels_last(const Tensor& tensor) {
  const int64_t rank = tensor.dim();
  if (rank < 3 || tensor.is_contiguous()) return false;
  int64_t step = 1;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t axis = i == 0 ? 1 : i == rank - 1 ? 0 : rank - i;  // C, W, H, ..., N
    if (tensor.size(axis) != 1 && tensor.stride(axis) != step) return false;
    step *= tensor.size(axis);
  }
  return true;
}

// The tensor itself if it is contiguous or channels_last, a contiguous copy otherwise. The layout of the outputs of
// element-wise ops; `empty_dense_like` in cvops/ops/_register.py is the same rule for fakes.
inline Tensor dense(const Tensor& tensor) {
  return is_channels_last(tensor) ? tensor : torch::stable::contiguous(tensor);
}

// The rule of the ops whose output has another size than their input: channels_last if channels are innermost in the
// input, be there gaps or not. `follows_channels_last` in cvops/ops/_register.py is the same rule for fakes.
inline bool follows_channels_last(const Tensor& input) {
  return input.size(1) > 1 && input.stride(1) == 1 && !input.is_contiguous();
}

// Uninitialised [n, c, h, w] on the device of `like`.
inline Tensor empty_maps(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, ScalarType type, bool last) {
  using torch::headeronly::MemoryFormat;
  const int64_t shape[] = {n, c, h, w};
  return torch::stable::empty({shape, 4}, type, std::nullopt, like.device(), std::nullopt,
      last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The tensor itself if it has the format, a copy otherwise.
inline Tensor in_format(const Tensor& tensor, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::contiguous(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The same, and starting at a multiple of 16 bytes, for the 16-byte loads of CUDA kernels.
inline Tensor in_aligned_format(const Tensor& tensor, bool channels_last) {
  const Tensor formed = in_format(tensor, channels_last);
  const bool aligned = reinterpret_cast<uintptr_t>(formed.const_data_ptr()) % 16 == 0;
  return aligned ? formed : torch::stable::clone(formed);
}

}  // namespace cvops
