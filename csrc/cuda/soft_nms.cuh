// Kernels of soft_nms and matrix_nms, which lower the scores of overlapping boxes instead of dropping them. The order
// of candidates and the exact overlap are in cuda/nms_candidates.cuh, launches in cuda/soft_nms.cu.
#pragma once

#include "cuda/nms_candidates.cuh"

namespace cvops::cuda {

// Minus infinity: the score of a box that is taken, or can never be.
template <typename T>
__device__ __forceinline__ T no_score() {
  return static_cast<T>(__int_as_float(static_cast<int>(0xff800000u)));
}

constexpr int kSoftThreads = 512;

template <typename T>
struct Best {
  T score;
  int64_t position;  // the lower one wins among equal scores

  __device__ __forceinline__ void take(T other_score, int64_t other_position) {
    if (other_score > score || (other_score == score && other_position < position)) {
      score = other_score;
      position = other_position;
    }
  }
};

// The best of the block's threads, for every thread.
template <typename T>
__device__ __forceinline__ Best<T> block_best(Best<T> mine) {
  constexpr int warps = kSoftThreads / kWarp;
  CVOPS_SHARED(T, scores, warps);
  CVOPS_SHARED(int64_t, positions, warps);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const T score = __shfl_xor_sync(kAllLanes, mine.score, step);
    const long long position = __shfl_xor_sync(kAllLanes, static_cast<long long>(mine.position), step);
    mine.take(score, position);
  }
  if (lane() == 0) {
    scores[warp()] = mine.score;
    positions[warp()] = mine.position;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < warps; ++w) mine.take(scores[w], positions[w]);
  __syncthreads();
  return mine;
}

// Soft-NMS (Bodla et al. 2017): takes the best box of a group, lowers the scores of the rest, and repeats until none is
// above score_threshold. A block does the groups that begin in its tile of kSoftThreads positions. decayed[i] is the
// score at which box i was taken, -inf if it never was; *taken counts them. `current` is workspace, [n].
template <typename In, typename T>
__global__ void __launch_bounds__(kSoftThreads, 2) soft_nms_kernel(const T* __restrict__ candidates, NmsOrder order,
    const In* __restrict__ scores, bool gaussian, T sigma, T iou_threshold, T score_threshold, T* __restrict__ current,
    T* __restrict__ decayed, unsigned long long* __restrict__ taken) {
  CVOPS_SHARED(unsigned, heads, kSoftThreads / kWarp);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kSoftThreads;
  const unsigned head = __ballot_sync(kAllLanes, tile + t < order.n && order.starts_group(0, tile + t));
  if (lane() == 0) heads[warp()] = head;
  __syncthreads();

  for (int w = 0; w < kSoftThreads / kWarp; ++w) {
    for (unsigned left = heads[w]; left != 0; left &= left - 1) {
      const int64_t start = tile + w * kWarp + __ffs(static_cast<int>(left)) - 1;
      // A thread owns every kSoftThreads-th candidate of the group from its own place on, up to `end`.
      int64_t end = start + t;
      Best<T> best{no_score<T>(), order.n};
      for (; end < order.n && (order.ids == nullptr || order.ids[end] == order.ids[start]); end += kSoftThreads) {
        const int64_t box = order.box(0, end);
        const T x1 = candidates[4 * end];
        const bool valid = x1 == x1;
        current[end] = valid ? static_cast<T>(scores[box]) : no_score<T>();
        decayed[box] = no_score<T>();
        if (current[end] > score_threshold) best.take(current[end], end);
      }
      for (;;) {
        best = block_best(best);
        if (best.position == order.n) break;
        if (t == 0) {
          decayed[order.box(0, best.position)] = best.score;
          atomicAdd(taken, 1ull);
        }
        const Box<T> box = load_box<T>(candidates, best.position);
        const BoxAndArea<T> winner{box, exact_area(box)};
        Best<T> next{no_score<T>(), order.n};
        for (int64_t p = start + t; p < end; p += kSoftThreads) {
          T score = current[p];
          if (score == no_score<T>()) continue;
          if (p == best.position) {
            current[p] = no_score<T>();
            continue;
          }
          const Box<T> other = load_box<T>(candidates, p);
          const T iou = ExactOverlap<T>(winner, {other, exact_area(other)}).iou();
          if (iou > T(0)) {
            if (gaussian) score = mul_rn(score, exp_of(div_rn(-mul_rn(iou, iou), sigma)));
            if (!gaussian && iou > iou_threshold) score = mul_rn(score, sub_rn(T(1), iou));
            current[p] = score;
          }
          if (score > score_threshold) next.take(score, p);
        }
        best = next;
      }
    }
  }
}

constexpr int kMatrixThreads = 128;

// First position of the group that `position` is in, found by each thread for itself.
__device__ __forceinline__ int64_t group_start_alone(const NmsOrder& order, int64_t position) {
  if (order.ids == nullptr) return 0;
  const int64_t id = order.ids[position];
  int64_t low = 0, high = position;  // ids[high] == id
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (order.ids[middle] == id) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Calls f(position of j, exact overlap of j and mine) for the earlier candidates of my group, tiles of them in shared
// memory. All threads of the block take part; those without a candidate have start == position.
template <typename T, typename F>
__device__ __forceinline__ void for_each_earlier(
    const T* candidates, const NmsOrder& order, int64_t start, int64_t position, const BoxAndArea<T>& me, const F& f) {
  CVOPS_SHARED(BoxAndArea<T>, tile, kMatrixThreads);
  CVOPS_SHARED(int64_t, first, 1);
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) first[0] = start;  // groups ascend, so the first thread's begins first
  __syncthreads();
  const int64_t block_end = (static_cast<int64_t>(blockIdx.x) + 1) * kMatrixThreads;
  for (int64_t base = first[0]; base < block_end; base += kMatrixThreads) {
    __syncthreads();
    const Box<T> box = base + t < order.n ? load_box<T>(candidates, base + t) : no_box<T>();
    tile[t] = {box, exact_area(box)};
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kMatrixThreads; ++k) {
      if (base + k >= start && base + k < position) f(base + k, ExactOverlap<T>(tile[k], me));
    }
  }
}

// covered[p] = largest IoU of candidate p with a higher-scored one of its group, 0 for none.
template <typename T>
__global__ void __launch_bounds__(kMatrixThreads)
    matrix_cover_kernel(const T* __restrict__ candidates, NmsOrder order, T* __restrict__ covered) {
  const int64_t position = grid_index();
  const bool exists = position < order.n;
  const Box<T> box = exists ? load_box<T>(candidates, position) : no_box<T>();
  T largest = T(0);
  for_each_earlier<T>(candidates, order, exists ? group_start_alone(order, position) : position, position,
      {box, exact_area(box)}, [&](int64_t, const ExactOverlap<T>& o) { largest = larger(o.iou(), largest); });
  if (exists) covered[position] = largest;
}

// Matrix NMS (Wang et al. 2020): decayed[i] = score times the smallest decay that a higher-scored box of the group asks
// for: linear (1 - iou) / (1 - covered), Gaussian exp(sigma (covered^2 - iou^2)). A box that duplicates a higher one
// (covered = 1) leaves the judgement to that one. Boxes that can never be kept get 0.
template <typename In, typename T>
__global__ void __launch_bounds__(kMatrixThreads) matrix_decay_kernel(const T* __restrict__ candidates, NmsOrder order,
    const T* __restrict__ covered, const In* __restrict__ scores, bool gaussian, T sigma, In* __restrict__ decayed) {
  const int64_t position = grid_index();
  const bool exists = position < order.n;
  const Box<T> box = exists ? load_box<T>(candidates, position) : no_box<T>();
  T least = gaussian ? T(0) : T(1);
  for_each_earlier<T>(candidates, order, exists ? group_start_alone(order, position) : position, position,
      {box, exact_area(box)}, [&](int64_t j, const ExactOverlap<T>& o) {
        const T iou = o.iou(), c = covered[j], open = sub_rn(T(1), c);
        const T linear = open > T(0) ? div_rn(sub_rn(T(1), iou), open) : T(1);
        least = smaller(gaussian ? sub_rn(mul_rn(c, c), mul_rn(iou, iou)) : linear, least);
      });
  if (!exists) return;
  const int64_t i = order.box(0, position);
  const T factor = gaussian ? exp_of(mul_rn(sigma, least)) : least;
  decayed[i] = static_cast<In>(box.x1 == box.x1 ? static_cast<T>(scores[i]) * factor : T(0));
}

}  // namespace cvops::cuda
