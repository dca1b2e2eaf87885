// Loop bodies of the focal losses, compiled once per instruction set (cpu/foreach_isa.h). No fused multiply-add, and
// sums in 16 lanes: the same bits on every instruction set.

#include "cpu/vec-inl.h"

template <typename T, typename S>
void focal_load(const S* from, int64_t n, T* to) {
  convert_row<T, false>(to, from, n);
}

// Of a gradient: float16 saturates instead of becoming infinite.
template <typename T, typename S>
void focal_store(T* from, int64_t n, S* to) {
  if constexpr (std::is_same_v<S, Half>) {
    constexpr T most = T(65504);
    for (int64_t i = 0; i < n; ++i) {
      const T bounded = from[i] > most ? most : from[i];
      from[i] = bounded < -most ? -most : bounded;
    }
  }
  round_row(to, static_cast<const T*>(from), n);
}

template <typename T, typename S>
void focal_round(const T* from, int64_t n, S* to) {
  round_row(to, from, n);
}

template <typename T>
void focal_multiply(T* __restrict values, const T* __restrict by, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= by[i];
}

template <typename T>
void focal_sum(const T* values, int64_t n, double* sum) {
  constexpr int64_t lanes = 16;
  double lane[lanes] = {};
  int64_t start = 0;
  for (; start + lanes <= n; start += lanes) {
    for (int64_t l = 0; l < lanes; ++l) lane[l] += values[start + l];
  }
  for (; start < n; ++start) lane[start % lanes] += values[start];
  double total = 0;
  for (int64_t l = 0; l < lanes; ++l) total += lane[l];
  *sum = total;
}

// f.template operator()<kind>().
template <typename F>
void with_power(int kind, const F& f) {
  if (kind == kPowerZero) return f.template operator()<kPowerZero>();
  if (kind == kPowerOne) return f.template operator()<kPowerOne>();
  if (kind == kPowerTwo) return f.template operator()<kPowerTwo>();
  return f.template operator()<kPowerAny>();
}

template <int kind, typename T>
void sigmoid_focal_rows_of(const T* __restrict x, const T* __restrict t, const T* __restrict positive,
    const T* __restrict negative, int64_t n, Power<T> gamma, T* __restrict loss) {
  for (int64_t i = 0; i < n; ++i) loss[i] = sigmoid_focal<kind>(x[i], t[i], positive[i], negative[i], gamma);
}

template <typename T>
void sigmoid_focal_rows(
    int kind, const T* x, const T* t, const T* positive, const T* negative, int64_t n, Power<T> gamma, T* loss) {
  with_power(kind, [&]<int kind>() { sigmoid_focal_rows_of<kind>(x, t, positive, negative, n, gamma, loss); });
}

template <int kind, typename T>
void sigmoid_focal_backward_rows_of(const T* __restrict grad, const T* __restrict x, const T* __restrict t,
    const T* __restrict positive, const T* __restrict negative, int64_t n, Power<T> gamma, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = grad[i] * sigmoid_focal_slope<kind>(x[i], t[i], positive[i], negative[i], gamma);
  }
}

template <typename T>
void sigmoid_focal_backward_rows(int kind, const T* grad, const T* x, const T* t, const T* positive, const T* negative,
    int64_t n, Power<T> gamma, T* out) {
  with_power(
      kind, [&]<int kind>() { sigmoid_focal_backward_rows_of<kind>(grad, x, t, positive, negative, n, gamma, out); });
}

// A heatmap as labels and weights of the sigmoid form: 1 and 1 where the target is 1, 0 and (1 - target)^gamma
// elsewhere.
template <int kind, typename T>
void heatmap_rows_of(
    const T* __restrict heatmap, int64_t n, Power<T> gamma, T* __restrict labels, T* __restrict weights) {
  for (int64_t i = 0; i < n; ++i) {
    const T t = heatmap[i], weight = heatmap_power<kind>(t, gamma);
    labels[i] = t == T(1) ? T(1) : T(0);
    weights[i] = t == T(1) ? T(1) : weight;
  }
}

template <typename T>
void heatmap_rows(const T* heatmap, int64_t n, Power<T> gamma, T* labels, T* weights) {
  if (gamma.exponent == T(4)) return heatmap_rows_of<kPowerFour>(heatmap, n, gamma, labels, weights);
  with_power(
      power_kind(gamma.exponent), [&]<int kind>() { heatmap_rows_of<kind>(heatmap, n, gamma, labels, weights); });
}

template <typename T>
T max_of_row(const T* row, int64_t n) {
  constexpr int lanes = full_lanes<T>;
  const auto greater = [](auto a, auto b) { return b > a ? b : a; };
  if (n < lanes) {
    T max = row[0];
    for (int64_t j = 1; j < n; ++j) max = greater(max, row[j]);
    return max;
  }
  auto max = load<T, lanes>(row);
  for (int64_t j = lanes; j < n; j += lanes) {
    max = greater(max, load<T, lanes>(row + (j + lanes <= n ? j : n - lanes)));
  }
  return folded<T, lanes>(max, greater);
}

// In 16 lanes, whose sums are added in pairs.
template <typename T>
T sum_of_row(const T* row, int64_t n) {
  constexpr int lanes = full_lanes<T>, all = 16, parts = all / lanes;
  Vec<T, lanes> sums[parts] = {};
  for (int64_t j = 0; j < n; j += all) {
    unrolled<parts>(CVOPS_INLINED(auto k) {
      const int64_t at = j + k * lanes;
      if (at < n) sums[k] += load_first<T, lanes>(row + at, n - at);
    });
  }
  for (int half = parts / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sum_lanes<T, lanes>(sums[0]);
}

// Parts of n rows of `classes` contiguous logits, the row of target[i] being x + i * classes. `exps` gets exp(x - max),
// 0 for the target. Steps go over all rows, so that those of one row need not wait for one another.
template <typename T>
void softmax_parts_rows(const T* __restrict x, const int64_t* target, int64_t n, int64_t classes, T* __restrict exps,
    T* __restrict above, T* __restrict own, T* __restrict others) {
  for (int64_t i = 0; i < n; ++i) {
    const T *row = x + i * classes, max = max_of_row(row, classes);
    T* to = exps + i * classes;
    for (int64_t j = 0; j < classes; ++j) to[j] = row[j] - max;
  }
  for (int64_t i = 0; i < n; ++i) {
    const bool known = target[i] >= 0 && target[i] < classes;
    above[i] = known ? -exps[i * classes + target[i]] : T(0);
  }
  for (int64_t i = 0; i < n * classes; ++i) exps[i] = exp_lane<true>(exps[i]);
  for (int64_t i = 0; i < n; ++i) {
    T* row = exps + i * classes;
    const bool known = target[i] >= 0 && target[i] < classes;
    own[i] = known ? row[target[i]] : T(0);
    if (known) row[target[i]] = T(0);
  }
  for (int64_t i = 0; i < n; ++i) others[i] = sum_of_row(exps + i * classes, classes);
}

// The same where class c of position i is x[c * stride + i], and its exponential exps[c * exps_stride + i].
template <typename T>
void softmax_parts_columns(const T* x, int64_t stride, const int64_t* target, int64_t n, int64_t classes, T* exps,
    int64_t exps_stride, T* __restrict above, T* __restrict own, T* __restrict others) {
  T max[kPositions];
  for (int64_t i = 0; i < n; ++i) max[i] = x[i], above[i] = T(0), own[i] = T(0), others[i] = T(0);
  for (int64_t c = 1; c < classes; ++c) {
    const T* __restrict row = x + c * stride;
    for (int64_t i = 0; i < n; ++i) max[i] = row[i] > max[i] ? row[i] : max[i];
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T* __restrict row = x + c * stride;
    T* __restrict to = exps + c * exps_stride;
    for (int64_t i = 0; i < n; ++i) {
      const T below = row[i] - max[i], e = exp_lane<true>(below), kept_above = above[i], kept_own = own[i];
      const bool is_target = target[i] == c;
      const T other = is_target ? T(0) : e;
      to[i] = other;
      others[i] += other;
      own[i] = is_target ? e : kept_own;
      above[i] = is_target ? -below : kept_above;
    }
  }
}

template <typename T>
void softmax_focal_finish(int kind, const T* __restrict above, const T* __restrict own, const T* __restrict others,
    const T* __restrict alpha, int64_t n, Power<T> gamma, T* __restrict loss) {
  with_power(kind, [&]<int kind>() {
    for (int64_t i = 0; i < n; ++i) {
      loss[i] = softmax_focal<kind>(SoftmaxParts<T>{above[i], own[i], others[i]}, alpha[i], gamma);
    }
  });
}

// alpha becomes the slope over the sum of exponentials: the gradient of a logit is that times exp(x - max), and for the
// target that times -others.
template <typename T>
void softmax_focal_slopes(int kind, const T* __restrict above, const T* __restrict own, const T* __restrict others,
    T* __restrict alpha, int64_t n, Power<T> gamma) {
  with_power(kind, [&]<int kind>() {
    for (int64_t i = 0; i < n; ++i) {
      const T slope = softmax_focal_slope<kind>(SoftmaxParts<T>{above[i], own[i], others[i]}, alpha[i], gamma);
      alpha[i] = slope / (own[i] + others[i]);
    }
  });
}

// From exp(x - max) to gradients, in place.
template <typename T>
void softmax_focal_grad_rows(
    const int64_t* target, const T* others, const T* slope, int64_t n, int64_t classes, T* values) {
  for (int64_t i = 0; i < n; ++i) {
    T* row = values + i * classes;
    const T scale = slope[i];
    for (int64_t j = 0; j < classes; ++j) row[j] *= scale;
    if (target[i] >= 0 && target[i] < classes) row[target[i]] = -scale * others[i];
  }
}

template <typename T>
void softmax_focal_grad_columns(const int64_t* target, const T* __restrict others, const T* __restrict slope, int64_t n,
    int64_t classes, T* values, int64_t stride) {
  for (int64_t c = 0; c < classes; ++c) {
    T* __restrict row = values + c * stride;
    for (int64_t i = 0; i < n; ++i) row[i] = slope[i] * (target[i] == c ? -others[i] : row[i]);
  }
}
