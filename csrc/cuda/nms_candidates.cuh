// What the kernels of the NMS family share: the order of candidates and the exact overlap of two. The order is made
// in cuda/nms_candidates.cu.
//
// Candidates stand image by image, in an image group by group, in a group by descending score. A candidate that can
// never be kept (NaN, or a score at or below the threshold) keeps its place as a box of NaN, which overlaps nothing.
#pragma once

#include "cuda/box.cuh"

namespace cvops::cuda {

// How candidates lie: n per image; ids and rank are null when there are no groups.
struct NmsOrder {
  int64_t batch, n;
  const int64_t* by_score;  // [B, N] box at each place of the descending order of an image's scores
  const int64_t* rank;      // [B, N] that place, for each position
  const int64_t* ids;       // [B, N] group id at each position, ascending in an image

  __device__ __forceinline__ int64_t place(int64_t image, int64_t position) const {
    return rank == nullptr ? position : rank[image * n + position];
  }
  __device__ __forceinline__ int64_t box(int64_t image, int64_t position) const {
    return by_score[image * n + place(image, position)];
  }
  __device__ __forceinline__ bool starts_group(int64_t image, int64_t position) const {
    return position == 0 || (ids != nullptr && ids[image * n + position] != ids[image * n + position - 1]);
  }
};

}  // namespace cvops::cuda
