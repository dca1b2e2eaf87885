// Kernels of the focal losses. Sigmoid and heatmap forms: a thread takes 16 bytes of logits at a time. Softmax: a warp
// per row of contiguous classes, or a thread per position where classes are strided. Sums go block by block into
// doubles that one more block adds in order: deterministic. Launches are in cuda/focal_loss.cu.
#pragma once

#include "cuda/device.cuh"
#include "ops/focal_loss.h"

namespace cvops::cuda {

constexpr int kFocalThreads = 256;
constexpr unsigned kFocalBlocks = 2048;  // at most, and partial sums

enum FocalLabels : int { kFloatLabels, kIntLabels, kBoolLabels, kIndices };

// Everything but the logits. Wide: floating targets are in the compute type T, not in the type of the logits.
template <typename T>
struct FocalSource {
  const void* targets;
  FocalLabels labels;
  bool wide;
  int64_t n, classes;
  const T* weight;  // per element, or per row; or null
  bool row_weight;
  const T* class_alpha;  // per class, or null: alpha
  T alpha;
  bool ignores;
  int64_t ignore_index;
  Power<T> heatmap_power;
};

// What the N elements of a pack have beside their logits. Elements past the end repeat the last one.
template <int N, typename T>
struct FocalPack {
  T label[N], weight[N], positive[N], negative[N];
  bool kept[N];
};

template <int N, typename From, typename T>
__device__ __forceinline__ void load_labels(const void* targets, const int64_t (&at)[N], FocalPack<N, T>& pack) {
#pragma unroll
  for (int k = 0; k < N; ++k) pack.label[k] = static_cast<T>(static_cast<const From*>(targets)[at[k]]);
}

template <bool heatmap, int N, typename In, typename T>
__device__ __forceinline__ FocalPack<N, T> load_focal(const FocalSource<T>& s, int64_t first) {
  FocalPack<N, T> pack;
  int64_t at[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    at[k] = first + k < s.n ? first + k : s.n - 1;
    pack.weight[k] = T(1), pack.kept[k] = true;
  }
  if constexpr (heatmap) {
    if (s.wide) {
      load_labels<N, T>(s.targets, at, pack);
    } else {
      load_labels<N, In>(s.targets, at, pack);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const T t = pack.label[k];
      const T weight = s.heatmap_power.exponent == T(4) ? heatmap_power<kPowerFour>(t, s.heatmap_power)
                                                        : heatmap_power<kPowerAny>(t, s.heatmap_power);
      pack.label[k] = t == T(1) ? T(1) : T(0);
      pack.weight[k] = t == T(1) ? T(1) : weight;
      pack.positive[k] = pack.negative[k] = T(1);
    }
    return pack;
  }
  int64_t row[N] = {};
  int64_t column[N] = {};
  if (s.labels == kIndices || s.class_alpha || s.row_weight) {
    // 32-bit division where it does, several times faster.
    int64_t r = s.n <= 0x7fffffff ? static_cast<uint32_t>(first) / static_cast<uint32_t>(s.classes) : first / s.classes;
    int64_t c = first - r * s.classes;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      row[k] = r, column[k] = c;
      if (first + k + 1 < s.n && ++c == s.classes) ++r, c = 0;
    }
  }
  if (s.labels == kFloatLabels) {
    if (s.wide) {
      load_labels<N, T>(s.targets, at, pack);
    } else {
      load_labels<N, In>(s.targets, at, pack);
    }
  } else if (s.labels == kBoolLabels) {
    load_labels<N, bool>(s.targets, at, pack);
  } else {
    const int64_t* targets = static_cast<const int64_t*>(s.targets);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int64_t target = targets[s.labels == kIndices ? row[k] : at[k]];
      pack.label[k] = (s.labels == kIndices ? target == column[k] : target != 0) ? T(1) : T(0);
      pack.kept[k] = !(s.ignores && target == s.ignore_index);
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const T a = s.class_alpha ? s.class_alpha[column[k]] : s.alpha;
    pack.positive[k] = a < T(0) ? T(1) : a;
    pack.negative[k] = a < T(0) ? T(1) : T(1) - a;
    if (s.weight) pack.weight[k] = s.weight[s.row_weight ? row[k] : at[k]];
  }
  return pack;
}

template <int N, typename In>
__device__ __forceinline__ Pack<In, N> load_logits(const In* x, int64_t first, int64_t n) {
  if (first + N <= n) return load_pack<N>(x + first);
  Pack<In, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) pack.at[k] = x[first + k < n ? first + k : first];
  return pack;
}

template <int N, typename In>
__device__ __forceinline__ void store_values(In* to, int64_t first, int64_t n, const Pack<In, N>& pack) {
  if (first + N <= n) return store_pack(to + first, pack);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (first + k < n) to[first + k] = pack.at[k];
  }
}

// Either losses (per element) or partial (one sum per block) is null. kind is kPowerTwo or kPowerAny, which serves the
// other exponents too.
template <int kind, bool heatmap, typename In, typename T>
__global__ void __launch_bounds__(kFocalThreads) sigmoid_focal_kernel(const In* __restrict__ x, FocalSource<T> source,
    Power<T> gamma, In* __restrict__ losses, double* __restrict__ partial) {
  constexpr int N = 16 / sizeof(In);
  double sum = 0;
  for (int64_t first = N * grid_index(); first < source.n; first += N * grid_stride()) {
    const Pack<In, N> logits = load_logits<N>(x, first, source.n);
    const FocalPack<N, T> e = load_focal<heatmap, N, In>(source, first);
    Pack<In, N> out;
    T part = T(0);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const T loss = e.weight[k] *
                     sigmoid_focal<kind>(static_cast<T>(logits.at[k]), e.label[k], e.positive[k], e.negative[k], gamma);
      const T kept = e.kept[k] ? loss : T(0);
      out.at[k] = static_cast<In>(kept);
      part += first + k < source.n ? kept : T(0);
    }
    if (losses) store_values<N>(losses, first, source.n, out);
    sum += static_cast<double>(part);
  }
  if (!partial) return;
  sum = block_sum<kFocalThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// grad_step is 0 when one value stands for all; the gradient has the dtype of the logits, or is wide.
template <int kind, bool heatmap, typename In, typename T>
__global__ void __launch_bounds__(kFocalThreads) sigmoid_focal_backward_kernel(const void* __restrict__ grad, bool wide,
    int64_t grad_step, const In* __restrict__ x, FocalSource<T> source, Power<T> gamma, T most, In* __restrict__ out) {
  constexpr int N = 16 / sizeof(In);
  for (int64_t first = N * grid_index(); first < source.n; first += N * grid_stride()) {
    const Pack<In, N> logits = load_logits<N>(x, first, source.n);
    const FocalPack<N, T> e = load_focal<heatmap, N, In>(source, first);
    Pack<In, N> gradients;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int64_t at = first + k < source.n ? (first + k) * grad_step : 0;
      const T g = wide ? static_cast<const T*>(grad)[at] : static_cast<T>(static_cast<const In*>(grad)[at]);
      const T slope =
          sigmoid_focal_slope<kind>(static_cast<T>(logits.at[k]), e.label[k], e.positive[k], e.negative[k], gamma);
      gradients.at[k] = static_cast<In>(saturated(e.kept[k] ? g * e.weight[k] * slope : T(0), most));
    }
    store_values<N>(out, first, source.n, gradients);
  }
}

template <typename T>
__global__ void __launch_bounds__(kFocalThreads)
    focal_sum_kernel(const double* __restrict__ partial, unsigned count, T* __restrict__ total) {
  double sum = 0;
  for (unsigned i = threadIdx.x; i < count; i += kFocalThreads) sum += partial[i];
  sum = block_sum<kFocalThreads>(sum);
  if (threadIdx.x == 0) *total = static_cast<T>(sum);
}

template <typename T>
struct SoftmaxSource {
  const int64_t* targets;
  int64_t positions, classes, inner;
  const T* class_alpha;
  T alpha;
  int64_t ignore_index;
  Power<T> gamma;

  // NaN for a target out of range: loud without a wait for the device.
  __device__ __forceinline__ T alpha_of(int64_t target) const {
    if (target < 0 || target >= classes) return static_cast<T>(__int_as_float(0x7fc00000));
    return class_alpha ? class_alpha[target] : alpha;
  }
};

// The logits of one position, shared by `Lanes` threads: a warp, or one thread.
template <int Lanes, typename In, typename T>
struct SoftmaxPosition {
  const In* x;
  int64_t step, target, classes;
  T max;
  SoftmaxParts<T> parts;

  __device__ __forceinline__ SoftmaxPosition(const In* logits, const SoftmaxSource<T>& s, int64_t position)
      : step(s.inner), target(s.targets[position]), classes(s.classes) {
    x = logits + position / s.inner * s.classes * s.inner + position % s.inner;
    max = at(0);
    for (int64_t c = first(); c < classes; c += Lanes) max = at(c) > max ? at(c) : max;
    if constexpr (Lanes == kWarp) max = warp_max(max);
    const bool known = target >= 0 && target < classes;
    T others = T(0);
    for (int64_t c = first(); c < classes; c += Lanes) others += c == target ? T(0) : exp_lane<true>(at(c) - max);
    if constexpr (Lanes == kWarp) others = warp_sum(others);
    parts = {known ? max - at(target) : T(0), known ? exp_lane<true>(at(target) - max) : T(0), others};
  }

  __device__ __forceinline__ int64_t first() const { return Lanes == kWarp ? lane() : 0; }
  __device__ __forceinline__ T at(int64_t c) const { return static_cast<T>(x[c * step]); }
};

template <int Lanes, typename In, typename T>
__global__ void __launch_bounds__(kFocalThreads) softmax_focal_kernel(
    const In* __restrict__ x, SoftmaxSource<T> source, In* __restrict__ losses, double* __restrict__ partial) {
  double sum = 0;
  for (int64_t i = grid_index() / Lanes; i < source.positions; i += grid_stride() / Lanes) {
    const SoftmaxPosition<Lanes, In, T> position(x, source, i);
    const T alpha = source.alpha_of(position.target);
    const T loss = softmax_focal<kPowerAny>(position.parts, alpha, source.gamma);
    const T kept = position.target == source.ignore_index ? T(0) : loss;
    if (Lanes == 1 || lane() == 0) {
      if (losses) losses[i] = static_cast<In>(kept);
      sum += static_cast<double>(kept);
    }
  }
  if (!partial) return;
  sum = block_sum<kFocalThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <int Lanes, typename In, typename T>
__global__ void __launch_bounds__(kFocalThreads) softmax_focal_backward_kernel(const void* __restrict__ grad, bool wide,
    int64_t grad_step, const In* __restrict__ x, SoftmaxSource<T> source, T most, In* __restrict__ out) {
  for (int64_t i = grid_index() / Lanes; i < source.positions; i += grid_stride() / Lanes) {
    const SoftmaxPosition<Lanes, In, T> position(x, source, i);
    const T g =
        wide ? static_cast<const T*>(grad)[i * grad_step] : static_cast<T>(static_cast<const In*>(grad)[i * grad_step]);
    const T alpha = source.alpha_of(position.target);
    const T slope = g * softmax_focal_slope<kPowerAny>(position.parts, alpha, source.gamma) /
                    (position.parts.own + position.parts.others);
    const bool kept = position.target != source.ignore_index;
    In* to = out + (position.x - x);
    for (int64_t c = position.first(); c < source.classes; c += Lanes) {
      const T share = c == position.target ? -position.parts.others : exp_lane<true>(position.at(c) - position.max);
      to[c * source.inner] = static_cast<In>(saturated(kept ? slope * share : T(0), most));
    }
  }
}

}  // namespace cvops::cuda
