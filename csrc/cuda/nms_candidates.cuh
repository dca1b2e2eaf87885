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

// The decisive arithmetic, rounded once per operation like the CPU's, whatever the compiler may contract.
template <typename T>
__device__ __forceinline__ T exact_area(const Box<T>& box) {
  return mul_rn(sub_rn(box.x2, box.x1), sub_rn(box.y2, box.y1));
}

template <typename T>
struct BoxAndArea {
  Box<T> box;
  T area;
};

template <typename T>
struct ExactOverlap {
  T overlap, joined;  // areas of intersection and union

  __device__ __forceinline__ ExactOverlap(const BoxAndArea<T>& a, const BoxAndArea<T>& b) {
    const T width = larger(sub_rn(smaller(a.box.x2, b.box.x2), larger(a.box.x1, b.box.x1)), T(0));
    const T height = larger(sub_rn(smaller(a.box.y2, b.box.y2), larger(a.box.y1, b.box.y1)), T(0));
    overlap = mul_rn(width, height);
    joined = sub_rn(add_rn(a.area, b.area), overlap);
  }

  __device__ __forceinline__ T iou() const { return div_rn(overlap, joined == T(0) ? T(1) : joined); }

  // iou > threshold. The division is left to pairs that a test without it, erring on the safe side, lets through.
  __device__ __forceinline__ bool exceeds(T threshold, T safe) const {
    return overlap > T(0) && overlap >= safe * joined && div_rn(overlap, joined) > threshold;
  }
};

}  // namespace cvops::cuda
