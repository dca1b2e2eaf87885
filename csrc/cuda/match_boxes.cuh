// Kernels of match_boxes: one thread per anchor, targets through shared memory. The first finds the best target of each
// anchor and the best IoU of each target, the second who has that IoU and applies the thresholds. Maxima and minima of
// integers are the only atomics, so the result does not depend on their order. Launches are in cuda/match_boxes.cu.
#pragma once

#include "cuda/box.cuh"

namespace cvops::cuda {

constexpr int kMatchThreads = 256;
constexpr int kMatchTargets = 128;  // in shared memory at a time

// IoUs are >= 0, so their bits order like them.
template <typename T>
struct IouBits {
  using type = unsigned;
};
template <>
struct IouBits<double> {
  using type = unsigned long long;
};
__device__ __forceinline__ unsigned bits_of(float iou) {
  return __float_as_uint(iou);
}
__device__ __forceinline__ unsigned long long bits_of(double iou) {
  return static_cast<unsigned long long>(__double_as_longlong(iou));
}

template <typename T>
__device__ __forceinline__ bool has_nan(const Box<T>& box) {
  return !(box.x1 == box.x1 && box.y1 == box.y1 && box.x2 == box.x2 && box.y2 == box.y2);
}

struct MatchShape {
  int64_t batch, n, m, anchor_step;  // anchor_step: anchors from image to image, 0 when they are shared
};

// The targets [start, start + count) of an image into shared memory. One that is not valid, or has a NaN, becomes a box
// of NaN, which overlaps nothing.
template <typename In, typename T>
__device__ __forceinline__ int load_targets(const In* __restrict__ targets, const bool* __restrict__ valid,
    const MatchShape& s, int64_t image, int64_t start, BoxAndArea<T>* tile) {
  const int count = static_cast<int>(s.m - start < kMatchTargets ? s.m - start : kMatchTargets);
  for (int k = threadIdx.x; k < count; k += kMatchThreads) {
    const int64_t j = image * s.m + start + k;
    Box<T> box = load_box<T>(targets, j);
    if (has_nan(box) || (valid && !valid[j])) box = no_box<T>();
    tile[k] = {box, exact_area(box)};
  }
  __syncthreads();
  return count;
}

// matches: the best target, -1 where there can be none; best: the largest IoU per target, in bits, 0 before.
template <typename In, typename T>
__global__ void __launch_bounds__(kMatchThreads) match_find_kernel(const In* __restrict__ anchors,
    const In* __restrict__ targets, const bool* __restrict__ valid, MatchShape s, int64_t* __restrict__ matches,
    T* __restrict__ ious, typename IouBits<T>::type* __restrict__ best) {
  using Bits = typename IouBits<T>::type;
  CVOPS_SHARED(BoxAndArea<T>, tile, kMatchTargets);
  CVOPS_SHARED(Bits, tile_best, kMatchTargets);
  const int64_t i = grid_index();
  for (int64_t image = blockIdx.y; image < s.batch; image += gridDim.y) {
    const Box<T> box = i < s.n ? load_box<T>(anchors, image * s.anchor_step + i) : no_box<T>();
    const BoxAndArea<T> own{box, exact_area(box)};
    T iou_here = T(0);
    int64_t match = -1;
    for (int64_t start = 0; start < s.m; start += kMatchTargets) {
      for (int k = threadIdx.x; k < kMatchTargets; k += kMatchThreads) tile_best[k] = 0;
      const int count = load_targets(targets, valid, s, image, start, tile);
      for (int k = 0; k < count; ++k) {
        if (match < 0 && tile[k].box.x1 == tile[k].box.x1) match = start + k;  // the lowest that may match
        const ExactOverlap<T> o(own, tile[k]);
        if (!(o.overlap > T(0))) continue;
        const T iou = o.iou();
        if (iou > iou_here) iou_here = iou, match = start + k;
        if (iou > T(0) && bits_of(iou) > tile_best[k]) atomicMax(&tile_best[k], bits_of(iou));
      }
      __syncthreads();
      for (int k = threadIdx.x; k < count; k += kMatchThreads) {
        if (tile_best[k] != 0) atomicMax(best + image * s.m + start + k, tile_best[k]);
      }
      __syncthreads();
    }
    if (i < s.n) {
      matches[image * s.n + i] = has_nan(box) ? -1 : match;
      ious[image * s.n + i] = iou_here;
    }
  }
}

// best_anchor: all ones (-1) before; the lowest anchor that has the best IoU of the target, if that is above 0.
template <typename In, typename T>
__global__ void __launch_bounds__(kMatchThreads) match_classify_kernel(const In* __restrict__ anchors,
    const In* __restrict__ targets, const bool* __restrict__ valid, MatchShape s, T low, T high, bool allow_low_quality,
    const typename IouBits<T>::type* __restrict__ best, int64_t* __restrict__ matches, const T* __restrict__ ious,
    unsigned long long* __restrict__ best_anchor) {
  using Bits = typename IouBits<T>::type;
  CVOPS_SHARED(BoxAndArea<T>, tile, kMatchTargets);
  CVOPS_SHARED(Bits, tile_best, kMatchTargets);
  const int64_t i = grid_index();
  for (int64_t image = blockIdx.y; image < s.batch; image += gridDim.y) {
    const Box<T> box = i < s.n ? load_box<T>(anchors, image * s.anchor_step + i) : no_box<T>();
    const BoxAndArea<T> own{box, exact_area(box)};
    bool restored = false;
    for (int64_t start = 0; start < s.m; start += kMatchTargets) {
      for (int k = threadIdx.x; k < kMatchTargets && start + k < s.m; k += kMatchThreads) {
        tile_best[k] = best[image * s.m + start + k];
      }
      const int count = load_targets(targets, valid, s, image, start, tile);
      for (int k = 0; k < count; ++k) {
        const ExactOverlap<T> o(own, tile[k]);
        const Bits wanted = tile_best[k];
        if (wanted != 0 && !(o.overlap > T(0))) continue;
        const T iou = o.iou();
        if (wanted == 0) {
          restored |= iou == T(0);  // of a target that meets nothing, every anchor ties at 0
        } else if (bits_of(iou) == wanted) {
          restored = true;
          atomicMin(best_anchor + image * s.m + start + k, static_cast<unsigned long long>(i));
        }
      }
      __syncthreads();
    }
    if (i < s.n) {
      const int64_t match = matches[image * s.n + i];
      const T iou = ious[image * s.n + i];
      const int64_t judged = iou < low ? -1 : iou < high ? -2 : match;
      matches[image * s.n + i] = match < 0 || (allow_low_quality && restored) ? match : judged;
    }
  }
}

}  // namespace cvops::cuda
