// Kernels of corner_pool. Columns: one thread for N neighbouring lines of [outer, length, inner], so that a warp reads
// a contiguous piece of every row. Rows (inner = 1): one warp per line, N elements to a lane, which scans them alone
// and then with the other lanes by shuffles. Nothing waits for another block, and no atomics: every element of the
// gradient is written by the thread or the warp that has its line. Launches are in cuda/corner_pool.cu.
#pragma once

#include "cuda/device.cuh"
#include "ops/corner_pool_lines.h"

namespace cvops::cuda {

constexpr int kCornerThreads = 128;

// The running maximum, and with `gather` the value that belongs to it.
template <typename T, bool gather>
struct Held {
  T best;
  T value;

  __device__ __forceinline__ void meet(T later, T later_value) {
    if (!takes_over(later, best)) return;
    best = later;
    if constexpr (gather) value = later_value;
  }
  __device__ __forceinline__ T result() const { return gather ? value : best; }
};

// Offset of the first element of the walk along column `i`, and the step to the next.
struct CornerWalk {
  int64_t first, step;
};
__device__ __forceinline__ CornerWalk column_walk(const CornerLines& lines, int64_t i) {
  const int64_t begin = i / lines.inner * lines.length * lines.inner + i % lines.inner;
  if (lines.reverse) return {begin + (lines.length - 1) * lines.inner, -lines.inner};
  return {begin, lines.inner};
}

template <int N, bool gather, typename S, typename T>
__global__ void __launch_bounds__(kCornerThreads) carry_columns_kernel(
    const S* __restrict__ in, const S* __restrict__ values, CornerLines lines, T least, S* __restrict__ out) {
  const int64_t packs = lines.outer * lines.inner / N;
  for (int64_t i = grid_index(); i < packs; i += grid_stride()) {
    const CornerWalk walk = column_walk(lines, i * N);
    Held<T, gather> held[N];
#pragma unroll
    for (int k = 0; k < N; ++k) held[k] = {least, T(0)};
#pragma unroll 4
    for (int64_t y = 0; y < lines.length; ++y) {
      const int64_t at = walk.first + y * walk.step;
      const Pack<S, N> next = load_pack<N>(in + at);
      Pack<S, N> moved;
      if constexpr (gather) moved = load_pack<N>(values + at);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        held[k].meet(static_cast<T>(next.at[k]), gather ? static_cast<T>(moved.at[k]) : T(0));
        moved.at[k] = static_cast<S>(held[k].result());
      }
      store_pack<N>(out + at, moved);
    }
  }
}

// Every element is first written as 0; a line's sum is written to its record when the next record takes over.
template <int N, typename S, typename T>
__global__ void __launch_bounds__(kCornerThreads) spread_columns_kernel(
    const S* __restrict__ grad, const S* __restrict__ in, CornerLines lines, T least, T most, S* __restrict__ out) {
  const int64_t packs = lines.outer * lines.inner / N;
  for (int64_t i = grid_index(); i < packs; i += grid_stride()) {
    const CornerWalk walk = column_walk(lines, i * N);
    T best[N], sum[N];
    int64_t record[N];
    Pack<S, N> zero;
#pragma unroll
    for (int k = 0; k < N; ++k)
      best[k] = least, sum[k] = T(0), record[k] = walk.first, zero.at[k] = static_cast<S>(T(0));
#pragma unroll 1
    for (int64_t y = 0; y < lines.length; ++y) {
      const int64_t at = walk.first + y * walk.step;
      const Pack<S, N> next = load_pack<N>(in + at), slope = load_pack<N>(grad + at);
      store_pack<N>(out + at, zero);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const T later = static_cast<T>(next.at[k]);
        if (takes_over(later, best[k])) {
          if (y > 0) out[record[k] + k] = static_cast<S>(saturated(sum[k], most));
          best[k] = later, record[k] = at, sum[k] = T(0);
        }
        sum[k] += static_cast<T>(slope.at[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) out[record[k] + k] = static_cast<S>(saturated(sum[k], most));
  }
}

// What a lane has of one step along a row: N elements that start `done` + N * lane elements into the walk, moved in the
// order of the walk. The length is a multiple of N, so that a lane has all of them or none.
template <int N, bool reverse>
struct LanePart {
  int64_t at;  // lowest offset in the row
  bool inside;

  __device__ __forceinline__ LanePart(const CornerLines& lines, int64_t done) {
    const int64_t start = done + lane() * N;
    inside = start < lines.length;
    at = reverse ? lines.length - start - N : start;
  }

  __device__ __forceinline__ int64_t offset(int k) const { return at + (reverse ? N - 1 - k : k); }

  template <typename S, typename T>
  __device__ __forceinline__ void load(const S* row, T (&values)[N]) const {
    if (!inside) return;
    const Pack<S, N> pack = load_pack<N>(row + at);
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = static_cast<T>(reverse ? pack.at[N - 1 - k] : pack.at[k]);
  }
  template <typename S, typename T>
  __device__ __forceinline__ void store(S* row, const T (&values)[N]) const {
    if (!inside) return;
    Pack<S, N> pack;
#pragma unroll
    for (int k = 0; k < N; ++k) pack.at[k] = static_cast<S>(values[reverse ? N - 1 - k : k]);
    store_pack<N>(row + at, pack);
  }
};

// What is held before the first element of this lane, where `own` is the result of its elements alone and `carried` of
// the elements before this step, to which those of this step are added.
template <typename T, bool gather>
__device__ __forceinline__ Held<T, gather> held_before(Held<T, gather> own, Held<T, gather>& carried) {
  const auto from = [](Held<T, gather> held, auto shuffle) {
    Held<T, gather> other{shuffle(held.best), T(0)};
    if constexpr (gather) other.value = shuffle(held.value);
    return other;
  };
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    Held<T, gather> earlier = from(own, [&](T x) { return __shfl_up_sync(kAllLanes, x, step); });
    if (lane() >= step) {
      earlier.meet(own.best, own.value);
      own = earlier;
    }
  }
  const Held<T, gather> before = from(own, [](T x) { return __shfl_up_sync(kAllLanes, x, 1); });
  const Held<T, gather> all = from(own, [](T x) { return __shfl_sync(kAllLanes, x, kWarp - 1); });
  Held<T, gather> result = carried;
  if (lane() > 0) result.meet(before.best, before.value);
  carried.meet(all.best, all.value);
  return result;
}

template <int N, bool reverse, bool gather, typename S, typename T>
__global__ void __launch_bounds__(kCornerThreads) carry_rows_kernel(
    const S* __restrict__ in, const S* __restrict__ values, CornerLines lines, T least, S* __restrict__ out) {
  for (int64_t row = grid_index() / kWarp; row < lines.outer; row += grid_stride() / kWarp) {
    const int64_t begin = row * lines.length;
    Held<T, gather> carried{least, T(0)};
    for (int64_t done = 0; done < lines.length; done += kWarp * N) {
      const LanePart<N, reverse> part(lines, done);
      T next[N], moved[N] = {};
#pragma unroll
      for (int k = 0; k < N; ++k) next[k] = least;
      part.load(in + begin, next);
      if constexpr (gather) part.load(values + begin, moved);
      Held<T, gather> own{least, T(0)};
#pragma unroll
      for (int k = 0; k < N; ++k) own.meet(next[k], moved[k]);
      Held<T, gather> held = held_before(own, carried);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        held.meet(next[k], moved[k]);
        moved[k] = held.result();
      }
      part.store(out + begin, moved);
    }
  }
}

// A lane adds its elements to its own records, and those before the first of them to the last record of the lanes
// before. The last record of a step stays open until there is a later one or the row ends; the lane that has it
// (`owner`) then stores its sum once more.
template <int N, bool reverse, typename S, typename T>
__global__ void __launch_bounds__(kCornerThreads) spread_rows_kernel(
    const S* __restrict__ grad, const S* __restrict__ in, CornerLines lines, T least, T most, S* __restrict__ out) {
  for (int64_t row = grid_index() / kWarp; row < lines.outer; row += grid_stride() / kWarp) {
    const int64_t begin = row * lines.length;
    Held<T, false> carried{least, T(0)};
    int owner = -1;
    int64_t record = 0;
    T open = 0;
    for (int64_t done = 0; done < lines.length; done += kWarp * N) {
      const LanePart<N, reverse> part(lines, done);
      T next[N], slope[N] = {};
#pragma unroll
      for (int k = 0; k < N; ++k) next[k] = least;
      part.load(in + begin, next);
      part.load(grad + begin, slope);
      Held<T, false> own{least, T(0)};
#pragma unroll
      for (int k = 0; k < N; ++k) own.meet(next[k], T(0));
      Held<T, false> held = held_before(own, carried);
      bool takes[N], any = false;
      int64_t last = 0;
      T head = 0;  // sum before the first record
#pragma unroll
      for (int k = 0; k < N; ++k) {
        takes[k] = part.inside && takes_over(next[k], held.best);
        if (takes[k]) held.best = next[k], any = true, last = part.offset(k);
        if (!any) head += slope[k];
      }
      // heads: of this lane to the next one with a record, that included.
      const unsigned with_record = __ballot_sync(kAllLanes, any), ahead = with_record >> lane();
      const int until = ahead == 0 ? kWarp - 1 : lane() + __ffs(ahead) - 1;
      T heads = head;
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) {
        const T other = __shfl_down_sync(kAllLanes, heads, step);
        if (lane() + step <= until) heads += other;
      }
      T sum = __shfl_down_sync(kAllLanes, heads, 1);
      if (lane() == kWarp - 1) sum = 0;
      open += __shfl_sync(kAllLanes, heads, 0);
      T tail = 0;  // sum of the last record
      bool found = false;
#pragma unroll
      for (int k = N - 1; k >= 0; --k) {
        sum += slope[k];
        slope[k] = takes[k] ? saturated(sum, most) : T(0);
        if (!takes[k]) continue;
        if (!found) tail = sum, found = true;
        sum = 0;
      }
      part.store(out + begin, slope);
      if (with_record != 0) {
        if (lane() == owner) out[begin + record] = static_cast<S>(saturated(open, most));
        owner = kWarp - 1 - __clz(with_record);
        record = __shfl_sync(kAllLanes, last, owner);
        open = __shfl_sync(kAllLanes, tail, owner);
      }
    }
    if (lane() == owner) out[begin + record] = static_cast<S>(saturated(open, most));
  }
}

}  // namespace cvops::cuda
