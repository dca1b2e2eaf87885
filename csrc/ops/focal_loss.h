// Focal losses: the argument checks that both backends call, and the closed forms of one element and their derivatives,
// shared by every backend (same bits). Sigmoid and softmax: Lin et al. 2017, arXiv:1708.02002. The heatmap form: Law
// and Deng 2018, arXiv:1808.01244, equation 1.
#pragma once

#include "ops/common.h"
#include "ops/elementary.h"
#include "ops/host_device.h"

namespace cvops {

// What the targets of sigmoid_focal_loss are: labels of the shape of inputs, floating or integer (0 or not), or a class
// index per row of the last dimension.
struct SigmoidFocalSizes {
  int64_t numel, classes;  // classes: the last dimension; numel = rows * classes
  bool indices;            // targets are class indices
  bool row_weight;         // weight is one per row
};

// Throw on shapes, dtypes and devices that do not fit.
CVOPS_API SigmoidFocalSizes check_sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& class_alpha, double gamma,
    std::optional<int64_t> ignore_index);
CVOPS_API void check_gaussian_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma);

struct SoftmaxFocalSizes {
  int64_t batch, classes, inner;  // inputs [batch, classes, inner], targets [batch, inner]
};
CVOPS_API SoftmaxFocalSizes check_softmax_focal_loss(
    const Tensor& inputs, const Tensor& targets, const std::optional<Tensor>& class_alpha, double gamma);

// grad is a scalar in the compute type (of a sum), or has the shape and dtype of the loss of each element.
CVOPS_API void check_focal_grad(const char* op, const Tensor& grad, const Tensor& inputs, const Tensor& like);

// Exponents with a closed form of their own; the rest go through exp and log.
// kPowerFour is the default of the heatmap form only.
enum PowerKind : int { kPowerZero, kPowerOne, kPowerTwo, kPowerAny, kPowerFour };

template <typename T>
struct Power {
  T exponent;
  T of_negative;  // times |m|^exponent for a negative m: 1 or -1 for an integer exponent, NaN otherwise
};

template <typename T>
Power<T> power_from(double exponent) {
  const bool integer = exponent == std::floor(exponent), odd = integer && std::fmod(exponent, 2) != 0;
  return {T(exponent), integer ? (odd ? T(-1) : T(1)) : T(NAN)};
}

inline PowerKind power_kind(double exponent) {
  return exponent == 0 ? kPowerZero : exponent == 1 ? kPowerOne : exponent == 2 ? kPowerTwo : kPowerAny;
}

// m^exponent; a denormal m counts as 0.
template <int kind, typename T>
HOST_DEVICE T power_of(T m, Power<T> power) {
  if constexpr (kind == kPowerZero) return T(1);
  if constexpr (kind == kPowerOne) return m;
  if constexpr (kind == kPowerTwo) return m * m;
  constexpr T tiny = sizeof(T) == 8 ? T(2.2250738585072014e-308) : T(1.17549435e-38);
  const T size = if_negative(m, -m, m);
  const T value = exp_lane(power.exponent * log_lane(size < tiny ? tiny : size));
  const T limit = power.exponent == T(0) ? T(1) : T(0);
  const T known = size < tiny ? limit : if_negative(m, value * power.of_negative, value);
  return m == m ? known : m;
}

// Of a logit x: p = sigmoid(x), q = sigmoid(-x), tail = log(1 + exp(-|x|)), so that softplus(x) = max(x, 0) + tail.
template <typename T>
struct Logistic {
  T p, q, tail;
};

template <typename T>
HOST_DEVICE Logistic<T> logistic(T x) {
  const T e = exp_lane<true>(minus_size(x)), one = T(1) + e;
  const T larger_half = T(1) / one, smaller_half = e * larger_half;
  T tail;
  if constexpr (sizeof(T) == 8) {
    tail = log1p(e);
  } else {
    // log(1 + e) = 2 atanh(e / (2 + e)).
    const T s = e / (T(2) + e), twice = s + s;
    tail = twice * atanh_tail(s * s) + twice;
  }
  return {if_negative(x, smaller_half, larger_half), if_negative(x, larger_half, smaller_half), tail};
}

// loss = (positive t + negative (1 - t)) m^gamma ce with m = 1 - p_t = p (1 - t) + q t and
// ce = t softplus(-x) + (1 - t) softplus(x). positive and negative are alpha and 1 - alpha, or 1 and 1.
template <int kind, typename T>
HOST_DEVICE T sigmoid_focal(T x, T t, T positive, T negative, Power<T> gamma) {
  const Logistic<T> l = logistic(x);
  const T u = T(1) - t;
  // An infinite logit on the right side of its target costs nothing: 0 * inf counts as 0.
  const T above = u * if_negative(x, T(0), x), below = t * if_negative(x, -x, T(0));
  const T ce = (u == T(0) ? T(0) : above) + (t == T(0) ? T(0) : below) + l.tail;
  const T m = l.p * u + l.q * t;
  return (positive * t + negative * u) * power_of<kind>(m, gamma) * ce;
}

// d loss / d x. Finite for any logit: at m = 0 the product m^(gamma - 1) p q has the limit 0 (gamma > 0).
template <int kind, typename T>
HOST_DEVICE T sigmoid_focal_slope(T x_in, T t, T positive, T negative, Power<T> gamma) {
  // Beyond 1000 nothing changes any more, and infinity would make inf * 0.
  const T raised = x_in < T(-1000) ? T(-1000) : x_in, x = raised > T(1000) ? T(1000) : raised;
  const Logistic<T> l = logistic(x);
  const T u = T(1) - t;
  const T ce = u * if_negative(x, T(0), x) + t * if_negative(x, -x, T(0)) + l.tail;
  const T m = l.p * u + l.q * t;
  const T ce_slope = l.p * u - l.q * t, m_slope = (u - t) * (l.p * l.q);
  const T scale = positive * t + negative * u;
  if constexpr (kind == kPowerZero) return scale * ce_slope;
  if constexpr (kind == kPowerOne) return scale * (m * ce_slope + m_slope * ce);
  if constexpr (kind == kPowerTwo) return scale * m * (m * ce_slope + (m_slope + m_slope) * ce);
  const T relative = m_slope / (m == T(0) ? T(1) : m);
  return scale * power_of<kind>(m, gamma) * (ce_slope + gamma.exponent * (relative * ce));
}

// What softmax focal loss needs of a row of logits and its target: above = max - x_t, others = the sum of exp(x_j -
// max) over j != t, own = exp(x_t - max).
template <typename T>
struct SoftmaxParts {
  T above, own, others;
};

template <typename T>
struct SoftmaxTerms {
  T p, q, nll;  // of the target: probability, 1 - probability, -log(probability); without cancellation
};

template <typename T>
HOST_DEVICE SoftmaxTerms<T> softmax_terms(const SoftmaxParts<T>& parts) {
  const T inverse = T(1) / (parts.own + parts.others);
  // max itself is among the others, unless it is the target: then own = 1.
  const T beyond_one = parts.above == T(0) ? parts.others : parts.own + (parts.others - T(1));
  return {parts.own * inverse, parts.others * inverse, parts.above + log1p_lane(beyond_one)};
}

template <int kind, typename T>
HOST_DEVICE T softmax_focal(const SoftmaxParts<T>& parts, T alpha, Power<T> gamma) {
  const SoftmaxTerms<T> s = softmax_terms(parts);
  return alpha * power_of<kind>(s.q, gamma) * s.nll;
}

// d loss / d x_j = slope p_j for j != t, and -slope q for j = t. Of q^gamma (1 + gamma p nll / q) the last quotient
// goes to 1 where q goes to 0, and p nll to 0 where p does.
template <int kind, typename T>
HOST_DEVICE T softmax_focal_slope(const SoftmaxParts<T>& parts, T alpha, Power<T> gamma) {
  const SoftmaxTerms<T> s = softmax_terms(parts);
  if constexpr (kind == kPowerZero) return alpha;
  const T quotient = s.q == T(0) ? T(1) : s.nll / (s.q == T(0) ? T(1) : s.q);
  const T product = s.p == T(0) ? T(0) : s.p * quotient;
  return alpha * power_of<kind>(s.q, gamma) * (T(1) + gamma.exponent * product);
}

// The two weights of the heatmap form: the target is positive where it is 1; elsewhere (1 - t)^gamma.
template <int kind, typename T>
HOST_DEVICE T heatmap_power(T t, Power<T> gamma) {
  const T u = T(1) - t;
  if constexpr (kind == kPowerFour) return (u * u) * (u * u);
  return power_of<kind>(u, gamma);
}

}  // namespace cvops
