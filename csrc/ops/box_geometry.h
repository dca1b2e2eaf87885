// Geometry of box overlap, shared by every backend: IoU, GIoU, DIoU and CIoU of a pair of (x1, y1, x2, y2) boxes and
// their closed-form gradients. The pairwise matrix (box_iou) and the element-wise losses (iou_loss) both read from
// here; they differ only in where epsilon goes.
#pragma once

#include <cmath>

#include "ops/host_device.h"

namespace cvops {

// IoU; GIoU (Rezatofighi et al. 2019, arXiv:1902.09630); DIoU and CIoU (Zheng et al. 2020, arXiv:1911.08287).
enum BoxMetric : int { kIou = 0, kGiou = 1, kDiou = 2, kCiou = 3 };

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// What a metric needs of one box beside its corners; angle = atan2(width, height) is read by CIoU only.
template <typename T>
struct BoxTerms {
  T area, angle;
};

// numerator / denominator with 0/0 = 0; a NaN denominator stays NaN.
template <typename T>
HOST_DEVICE T divide_or_zero(T numerator, T denominator) {
  return numerator / (denominator == T(0) ? T(1) : denominator);
}

// atan2(width, height). In float32 a polynomial without branches, so that a loop over boxes vectorises and every
// backend gets the same bits: reduction to |x| <= tan(pi / 8) and coefficients are those of Cephes' atanf (S. Moshier,
// netlib.org/cephes), whose error is below 2e-7.
template <typename T>
HOST_DEVICE T aspect_angle(T width, T height) {
  if constexpr (sizeof(T) == 8) {
    return atan2(width, height);
  } else {
    // Every arm of a choice is computed beforehand: the compiler then selects instead of branching.
    const T w = larger(width, -width), h = larger(height, -height);
    const T slope = divide_or_zero(smaller(w, h), larger(w, h));  // in [0, 1]
    const T reduced = (slope - T(1)) / (slope + T(1));
    const bool steep = slope > T(0.4142135623730950);
    const T x = steep ? reduced : slope, offset = steep ? T(0.785398163397448309) : T(0);
    const T z = x * x;
    const T cubic = ((T(8.05374449538e-2) * z - T(1.38776856032e-1)) * z + T(1.99777106478e-1)) * z;
    const T acute = (cubic - T(3.33329491539e-1)) * z * x + x + offset;
    const T complement = T(1.57079632679489661923) - acute;
    const T quadrant = w > h ? complement : acute;
    const T supplement = T(3.14159265358979323846) - quadrant;
    const T half_turn = height < T(0) ? supplement : quadrant;
    return width < T(0) ? -half_turn : half_turn;
  }
}

template <typename T>
struct MetricEps {
  T area;      // added to union and hull; 0 for the matrices, where 0/0 is defined as 0
  T diagonal;  // added to the squared diagonal of the hull
};

template <typename T>
HOST_DEVICE T box_area(const Box<T>& box) {
  return (box.x2 - box.x1) * (box.y2 - box.y1);
}

// 1 / x, and 0 where that is not finite, so that no gradient becomes inf * 0.
template <typename T>
HOST_DEVICE T inverse_or_zero(T x) {
  constexpr T smallest = sizeof(T) == 8 ? T(2.2250738585072014e-308) : T(1.17549435e-38);
  return x < smallest ? T(0) : T(1) / x;
}

template <typename T>
struct Overlap {
  T width, height, area, box_union;  // of the intersection; box_union is the area of the union
};

template <typename T>
HOST_DEVICE Overlap<T> overlap(const Box<T>& a, T area_a, const Box<T>& b, T area_b) {
  Overlap<T> o;
  o.width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), T(0));
  o.height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), T(0));
  o.area = o.width * o.height;
  o.box_union = area_a + area_b - o.area;
  return o;
}

template <int metric, typename T>
HOST_DEVICE T box_metric(
    const Box<T>& a, const BoxTerms<T>& of_a, const Box<T>& b, const BoxTerms<T>& of_b, MetricEps<T> eps) {
  const Overlap<T> o = overlap(a, of_a.area, b, of_b.area);
  const T iou = divide_or_zero(o.area, o.box_union + eps.area);
  if constexpr (metric == kIou) return iou;

  const T hull_width = larger(larger(a.x2, b.x2) - smaller(a.x1, b.x1), T(0));
  const T hull_height = larger(larger(a.y2, b.y2) - smaller(a.y1, b.y1), T(0));
  if constexpr (metric == kGiou) {
    const T hull = hull_width * hull_height;
    return iou - divide_or_zero(hull - o.box_union, hull + eps.area);
  }
  const T dx = (a.x1 + a.x2) / T(2) - (b.x1 + b.x2) / T(2);
  const T dy = (a.y1 + a.y2) / T(2) - (b.y1 + b.y2) / T(2);
  const T diagonal = hull_width * hull_width + hull_height * hull_height + eps.diagonal;
  const T diou = iou - divide_or_zero(dx * dx + dy * dy, diagonal);
  if constexpr (metric == kDiou) return diou;

  constexpr T four_over_pi_squared = T(0.405284734569351085775517852838911);
  const T turn = of_a.angle - of_b.angle;
  const T v = four_over_pi_squared * turn * turn;
  return diou - divide_or_zero(v, T(1) - iou + v + eps.diagonal) * v;
}

// d larger(a, b) / da: 1, 0, or one half each at a tie, as torch does.
template <typename T>
HOST_DEVICE T share_of_larger(T a, T b) {
  return a > b ? T(1) : a == b ? T(0.5) : T(0);
}

// What a gradient `grad` of a span (high - low) gives to the corners of a: low is the larger of two lows and high the
// smaller of two highs. The rest goes to b.
template <typename T>
struct SpanShares {
  T low, high;
};

template <typename T>
HOST_DEVICE SpanShares<T> inner_span(T grad, T low_a, T low_b, T high_a, T high_b) {
  return {-grad * share_of_larger(low_a, low_b), grad * share_of_larger(high_b, high_a)};
}

template <typename T>
struct BoxPairGrad {
  Box<T> a, b;
};

// Gradient of box_metric, times grad. Closed form, finite for zero-area, touching and identical boxes. CIoU's alpha is
// a constant, as in the paper.
template <int metric, typename T>
HOST_DEVICE BoxPairGrad<T> box_metric_backward(
    const Box<T>& a, const BoxTerms<T>& of_a, const Box<T>& b, const BoxTerms<T>& of_b, MetricEps<T> eps, T grad) {
  const Overlap<T> o = overlap(a, of_a.area, b, of_b.area);
  const T wa = a.x2 - a.x1, ha = a.y2 - a.y1, wb = b.x2 - b.x1, hb = b.y2 - b.y1;
  const T inverse_union = inverse_or_zero(o.box_union + eps.area);
  const T iou = o.area * inverse_union;
  T d_union = -iou * inverse_union;  // of the metric, by the area of the union
  T d_hull_width = T(0), d_hull_height = T(0);
  T ax = T(0), ay = T(0);              // to both x corners of a, both y corners; the opposite to b's
  T turn_a_x = T(0), turn_a_y = T(0);  // to a.x2 and a.y2 by the aspect angle; the opposite to x1, y1
  T turn_b_x = T(0), turn_b_y = T(0);  // and of b

  const T hull_width = larger(larger(a.x2, b.x2) - smaller(a.x1, b.x1), T(0));
  const T hull_height = larger(larger(a.y2, b.y2) - smaller(a.y1, b.y1), T(0));
  if constexpr (metric == kGiou) {
    const T inverse_hull = inverse_or_zero(hull_width * hull_height + eps.area);
    const T d_hull = -(o.box_union + eps.area) * inverse_hull * inverse_hull;
    d_union += inverse_hull;
    d_hull_width = d_hull * hull_height;
    d_hull_height = d_hull * hull_width;
  }
  if constexpr (metric == kDiou || metric == kCiou) {
    const T dx = (a.x1 + a.x2) / T(2) - (b.x1 + b.x2) / T(2);
    const T dy = (a.y1 + a.y2) / T(2) - (b.y1 + b.y2) / T(2);
    const T inverse = inverse_or_zero(hull_width * hull_width + hull_height * hull_height + eps.diagonal);
    const T distance = (dx * dx + dy * dy) * inverse;
    d_hull_width = T(2) * distance * hull_width * inverse;
    d_hull_height = T(2) * distance * hull_height * inverse;
    ax = -grad * dx * inverse;
    ay = -grad * dy * inverse;
  }
  if constexpr (metric == kCiou) {
    constexpr T four_over_pi_squared = T(0.405284734569351085775517852838911);
    const T turn = of_a.angle - of_b.angle;
    const T v = four_over_pi_squared * turn * turn;
    const T alpha = v * inverse_or_zero(T(1) - iou + v + eps.diagonal);
    const T d_turn = -grad * alpha * T(2) * four_over_pi_squared * turn;
    const T ra = d_turn * inverse_or_zero(wa * wa + ha * ha), rb = d_turn * inverse_or_zero(wb * wb + hb * hb);
    turn_a_x = ra * ha, turn_a_y = -ra * wa;
    turn_b_x = -rb * hb, turn_b_y = rb * wb;
  }

  // union = area_a + area_b - intersection
  const T d_area = grad * d_union;
  const T d_overlap = grad * inverse_union - d_area;
  const T along_x = o.width > T(0) ? d_overlap * o.height : T(0);
  const T along_y = o.height > T(0) ? d_overlap * o.width : T(0);
  const SpanShares<T> x = inner_span(along_x, a.x1, b.x1, a.x2, b.x2);
  const SpanShares<T> y = inner_span(along_y, a.y1, b.y1, a.y2, b.y2);
  const T hull_x = grad * d_hull_width, hull_y = grad * d_hull_height;
  // The hull takes the smaller low and the larger high corner: an inner span with the boxes' roles exchanged.
  const SpanShares<T> hx = inner_span(hull_x, b.x1, a.x1, b.x2, a.x2);
  const SpanShares<T> hy = inner_span(hull_y, b.y1, a.y1, b.y2, a.y2);
  return {{x.low + hx.low + ax - turn_a_x - d_area * ha, y.low + hy.low + ay - turn_a_y - d_area * wa,
              x.high + hx.high + ax + turn_a_x + d_area * ha, y.high + hy.high + ay + turn_a_y + d_area * wa},
      {-along_x - x.low - hull_x - hx.low - ax - turn_b_x - d_area * hb,
          -along_y - y.low - hull_y - hy.low - ay - turn_b_y - d_area * wb,
          along_x - x.high + hull_x - hx.high - ax + turn_b_x + d_area * hb,
          along_y - y.high + hull_y - hy.high - ay + turn_b_y + d_area * wb}};
}

}  // namespace cvops
