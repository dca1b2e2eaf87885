// Host side shared by the NMS family: candidates in order, with their boxes gathered. What they are is in
// cuda/nms_candidates.cuh; what is done with them in cuda/nms.cu and cuda/soft_nms.cu.
#pragma once

#include "cuda/launch.h"
#include "cuda/nms_candidates.cuh"
#include "ops/nms.h"

#include <cmath>

namespace cvops::cuda {

// The tensors keep the pointers of `order` alive.
struct Candidates {
  Tensor boxes;   // [B, N, 4] in order and in the compute type, NaN where a box can never be kept
  Tensor scores;  // [B, N] as given, in the common dtype of boxes and scores
  Tensor by_score;
  Sorted groups;
  NmsOrder order;
};

// boxes [.., N, 4] and scores [.., N], any floating dtypes, any strides; scores must exceed score_threshold if given.
Candidates order_candidates(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs, int64_t batch,
    int64_t n, std::optional<double> score_threshold, cudaStream_t stream);

}  // namespace cvops::cuda
