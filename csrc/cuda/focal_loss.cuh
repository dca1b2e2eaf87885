// Kernels of the focal losses. Sigmoid and heatmap forms: a thread takes 16 bytes of logits at a time. Softmax: a warp
// per row of contiguous classes, or a thread per position where classes are strided. Sums go block by block into
// doubles that one more block adds in order: deterministic. Launches are in cuda/focal_loss.cu.
#pragma once

#include "cuda/device.cuh"
#include "ops/focal_loss.h"

namespace cvops::cuda {

constexpr int kFocalThreads = 256;
constexpr unsigned kFocalBlocks = 2048;  // at most, and partial sums

enum FocalLabels : int { kLabels, kWideLabels, kIntLabels, kBoolLabels, kIndices, kHeatmap, kWideHeatmap };

// Everything but the logits; the wide kinds are in the compute type T where the logits are of a half type.
template <typename T>
struct FocalSource {
  const void* targets;
  FocalLabels labels;
  int64_t n, classes;
  const T* weight;  // per element, or per row; or null
  bool row_weight;
  const T* class_alpha;  // per class, or null: alpha
  T alpha;
  bool ignores;
  int64_t ignore_index;
  int heatmap_kind;
  Power<T> heatmap_power;
};

// Label, the two alphas, and the factor of one element.
template <typename T>
struct FocalElement {
  T t, positive, negative, weight;
  bool kept;
};

template <typename In, typename T>
__device__ __forceinline__ FocalElement<T> focal_element(
    const FocalSource<T>& s, int64_t i, int64_t row, int64_t column) {
  FocalElement<T> e{T(0), T(1), T(1), T(1), true};
  if (s.labels == kLabels || s.labels == kHeatmap) {
    e.t = static_cast<T>(static_cast<const In*>(s.targets)[i]);
  } else if (s.labels == kWideLabels || s.labels == kWideHeatmap) {
    e.t = static_cast<const T*>(s.targets)[i];
  } else if (s.labels == kBoolLabels) {
    e.t = static_cast<const uint8_t*>(s.targets)[i] != 0 ? T(1) : T(0);
  } else {
    const int64_t target = static_cast<const int64_t*>(s.targets)[s.labels == kIndices ? row : i];
    e.t = (s.labels == kIndices ? target == column : target != 0) ? T(1) : T(0);
    e.kept = !(s.ignores && target == s.ignore_index);
  }
  if (s.labels == kHeatmap || s.labels == kWideHeatmap) {
    const T weight = heatmap_power(e.t, s.heatmap_kind, s.heatmap_power);
    e.weight = e.t == T(1) ? T(1) : weight;
    e.t = e.t == T(1) ? T(1) : T(0);
  }
  const T a = s.class_alpha ? s.class_alpha[column] : s.alpha;
  if (!(a < T(0))) e.positive = a, e.negative = T(1) - a;
  if (s.weight) e.weight = s.weight[s.row_weight ? row : i];
  return e;
}

// body(k, element number, element) for the elements of the pack that starts at `first`.
template <int N, typename In, typename T, typename F>
__device__ __forceinline__ void for_pack(const FocalSource<T>& s, int64_t first, const F& body) {
  int64_t row = 0, column = 0;
  if (s.labels == kIndices || s.class_alpha || s.row_weight) {
    // 32-bit division where it does, several times faster.
    row = s.n <= 0x7fffffff ? static_cast<uint32_t>(first) / static_cast<uint32_t>(s.classes) : first / s.classes;
    column = first - row * s.classes;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (first + k < s.n) body(k, first + k, focal_element<In>(s, first + k, row, column));
    if (++column == s.classes) ++row, column = 0;
  }
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

// Either losses (per element) or partial (one sum per block) is null.
template <int kind, typename In, typename T>
__global__ void __launch_bounds__(kFocalThreads) sigmoid_focal_kernel(const In* __restrict__ x, FocalSource<T> source,
    Power<T> gamma, In* __restrict__ losses, double* __restrict__ partial) {
  constexpr int N = 16 / sizeof(In);
  double sum = 0;
  for (int64_t first = N * grid_index(); first < source.n; first += N * grid_stride()) {
    const Pack<In, N> logits = load_logits<N>(x, first, source.n);
    Pack<In, N> out;
    T part = T(0);
    for_pack<N, In>(source, first, [&](int k, int64_t, const FocalElement<T>& e) {
      const T loss = e.weight * sigmoid_focal<kind>(static_cast<T>(logits.at[k]), e.t, e.positive, e.negative, gamma);
      const T kept = e.kept ? loss : T(0);
      out.at[k] = static_cast<In>(kept);
      part += kept;
    });
    if (losses) store_values<N>(losses, first, source.n, out);
    sum += static_cast<double>(part);
  }
  if (!partial) return;
  sum = block_sum<kFocalThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// grad_step is 0 when one value stands for all; the gradient has the dtype of the logits, or is wide.
template <int kind, typename In, typename T>
__global__ void __launch_bounds__(kFocalThreads) sigmoid_focal_backward_kernel(const void* __restrict__ grad, bool wide,
    int64_t grad_step, const In* __restrict__ x, FocalSource<T> source, Power<T> gamma, T most, In* __restrict__ out) {
  constexpr int N = 16 / sizeof(In);
  for (int64_t first = N * grid_index(); first < source.n; first += N * grid_stride()) {
    const Pack<In, N> logits = load_logits<N>(x, first, source.n);
    Pack<In, N> gradients;
    for_pack<N, In>(source, first, [&](int k, int64_t i, const FocalElement<T>& e) {
      const T g = wide ? static_cast<const T*>(grad)[i * grad_step]
                       : static_cast<T>(static_cast<const In*>(grad)[i * grad_step]);
      const T slope =
          g * e.weight * sigmoid_focal_slope<kind>(static_cast<T>(logits.at[k]), e.t, e.positive, e.negative, gamma);
      gradients.at[k] = static_cast<In>(saturated(e.kept ? slope : T(0), most));
    });
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
__device__ __forceinline__ T softmax_loss(int kind, const SoftmaxParts<T>& parts, T alpha, Power<T> gamma) {
  return kind == kPowerZero  ? softmax_focal<kPowerZero>(parts, alpha, gamma)
         : kind == kPowerOne ? softmax_focal<kPowerOne>(parts, alpha, gamma)
         : kind == kPowerTwo ? softmax_focal<kPowerTwo>(parts, alpha, gamma)
                             : softmax_focal<kPowerAny>(parts, alpha, gamma);
}
template <typename T>
__device__ __forceinline__ T softmax_slope(int kind, const SoftmaxParts<T>& parts, T alpha, Power<T> gamma) {
  return kind == kPowerZero  ? softmax_focal_slope<kPowerZero>(parts, alpha, gamma)
         : kind == kPowerOne ? softmax_focal_slope<kPowerOne>(parts, alpha, gamma)
         : kind == kPowerTwo ? softmax_focal_slope<kPowerTwo>(parts, alpha, gamma)
                             : softmax_focal_slope<kPowerAny>(parts, alpha, gamma);
}

template <typename T>
struct SoftmaxSource {
  const int64_t* targets;
  int64_t positions, classes, inner;
  const T* class_alpha;
  T alpha;
  int64_t ignore_index;
  int kind;
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
    for (int64_t c = first(); c < classes; c += Lanes) others += c == target ? T(0) : exp_lane(at(c) - max);
    if constexpr (Lanes == kWarp) others = warp_sum(others);
    parts = {known ? max - at(target) : T(0), known ? exp_lane(at(target) - max) : T(0), others};
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
    const T loss = softmax_loss(source.kind, position.parts, alpha, source.gamma);
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
    const T slope = g * softmax_slope(source.kind, position.parts, alpha, source.gamma) /
                    (position.parts.own + position.parts.others);
    const bool kept = position.target != source.ignore_index;
    In* to = out + (position.x - x);
    for (int64_t c = position.first(); c < source.classes; c += Lanes) {
      const T share = c == position.target ? -position.parts.others : exp_lane(position.at(c) - position.max);
      to[c * source.inner] = static_cast<In>(saturated(kept ? slope * share : T(0), most));
    }
  }
}

}  // namespace cvops::cuda
