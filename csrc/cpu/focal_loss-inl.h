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

// Parts of n rows of `classes` contiguous logits, the row of target[i] being x + i * classes.
template <typename T>
void softmax_parts_rows(
    const T* x, const int64_t* target, int64_t n, int64_t classes, T* maxima, T* above, T* own, T* others) {
  constexpr int64_t lanes = 16;
  for (int64_t i = 0; i < n; ++i) {
    const T* __restrict row = x + i * classes;
    const int64_t whole = classes / lanes * lanes;
    T best[lanes], sum[lanes] = {};
    for (int64_t l = 0; l < lanes; ++l) best[l] = row[l < classes ? l : 0];
    for (int64_t j = 0; j < whole; j += lanes) {
      for (int64_t l = 0; l < lanes; ++l) best[l] = row[j + l] > best[l] ? row[j + l] : best[l];
    }
    for (int64_t j = whole; j < classes; ++j) best[j - whole] = row[j] > best[j - whole] ? row[j] : best[j - whole];
    T max = best[0];
    for (int64_t l = 1; l < lanes; ++l) max = best[l] > max ? best[l] : max;
    const int64_t t = target[i];
    for (int64_t j = 0; j < whole; j += lanes) {
      const int32_t at = static_cast<int32_t>(t - j < 0 || t - j >= lanes ? -1 : t - j);
      for (int32_t l = 0; l < lanes; ++l) {
        const T e = exp_lane<true>(row[j + l] - max);
        sum[l] += l == at ? T(0) : e;
      }
    }
    if (whole < classes) {
      T rest[lanes];
      const int64_t count = classes - whole;
      for (int64_t l = 0; l < lanes; ++l) rest[l] = row[whole + (l < count ? l : 0)] - max;
      for (int64_t l = 0; l < lanes; ++l) rest[l] = exp_lane<true>(rest[l]);
      for (int64_t l = 0; l < lanes; ++l) sum[l] += l >= count || whole + l == t ? T(0) : rest[l];
    }
    T total = sum[0];
    for (int64_t l = 1; l < lanes; ++l) total += sum[l];
    const bool known = t >= 0 && t < classes;
    maxima[i] = max;
    above[i] = known ? max - row[t] : T(0);
    own[i] = known ? exp_lane<true>(row[t] - max) : T(0);
    others[i] = total;
  }
}

// The same where class c of position i is x[c * stride + i]; max is an output too.
template <typename T>
void softmax_parts_columns(const T* x, int64_t stride, const int64_t* target, int64_t n, int64_t classes,
    T* __restrict max, T* __restrict above, T* __restrict own, T* __restrict others) {
  for (int64_t i = 0; i < n; ++i) max[i] = x[i], above[i] = T(0), own[i] = T(0), others[i] = T(0);
  for (int64_t c = 1; c < classes; ++c) {
    const T* __restrict row = x + c * stride;
    for (int64_t i = 0; i < n; ++i) max[i] = row[i] > max[i] ? row[i] : max[i];
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T* __restrict row = x + c * stride;
    for (int64_t i = 0; i < n; ++i) {
      const T below = row[i] - max[i], e = exp_lane<true>(below), kept_above = above[i], kept_own = own[i];
      const bool is_target = target[i] == c;
      others[i] += is_target ? T(0) : e;
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

// alpha becomes the slope over the sum of exponentials: grad_j = that times exp(x_j - max), and for the target that
// times -others.
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

template <typename T>
void softmax_focal_grad_rows(const T* x, const int64_t* target, const T* maxima, const T* others, const T* slope,
    int64_t n, int64_t classes, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    const T* __restrict row = x + i * classes;
    T* __restrict to = out + i * classes;
    const int64_t t = target[i];
    const T max = maxima[i], scale = slope[i];
    for (int64_t j = 0; j < classes; ++j) to[j] = scale * exp_lane<true>(row[j] - max);
    if (t >= 0 && t < classes) to[t] = -scale * others[i];
  }
}

template <typename T>
void softmax_focal_grad_columns(const T* x, int64_t stride, const int64_t* target, const T* __restrict max,
    const T* __restrict others, const T* __restrict slope, int64_t n, int64_t classes, T* out, int64_t out_stride) {
  for (int64_t c = 0; c < classes; ++c) {
    const T* __restrict row = x + c * stride;
    T* __restrict to = out + c * out_stride;
    for (int64_t i = 0; i < n; ++i) {
      const T rising = slope[i] * exp_lane<true>(row[i] - max[i]), falling = -slope[i] * others[i];
      to[i] = target[i] == c ? falling : rising;
    }
  }
}
