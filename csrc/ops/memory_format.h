// The memory formats that element-wise ops keep: contiguous and channels_last, of any rank.
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

}  // namespace cvops
