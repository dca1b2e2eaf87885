// Boxes on the device: loading one from a tensor of any dtype, the per-box terms of a metric, overlap where a
// comparison decides, and the choice of a metric at launch. Geometry is in ops/box_geometry.h.
#pragma once

#include "cuda/device.cuh"
#include "ops/box_geometry.h"

namespace cvops::cuda {

// Box i of an array [n, 4], in the compute type.
template <typename T, typename In>
__device__ __forceinline__ Box<T> load_box(const In* boxes, int64_t i) {
  const Pack<In, 4> corners = load_pack<4>(boxes + 4 * i);
  return {static_cast<T>(corners.at[0]), static_cast<T>(corners.at[1]), static_cast<T>(corners.at[2]),
      static_cast<T>(corners.at[3])};
}

// A box of NaN: it overlaps nothing, and its x1 differs from itself.
template <typename T>
__device__ __forceinline__ Box<T> no_box() {
  const T nan = static_cast<T>(__int_as_float(0x7fc00000));
  return {nan, nan, nan, nan};
}

template <typename Out, typename T>
__device__ __forceinline__ void store_box(Out* boxes, int64_t i, const Box<T>& box) {
  const Pack<Out, 4> corners{
      {static_cast<Out>(box.x1), static_cast<Out>(box.y1), static_cast<Out>(box.x2), static_cast<Out>(box.y2)}};
  store_pack(boxes + 4 * i, corners);
}

// The same for a gradient, which saturates at `most`.
template <typename Out, typename T>
__device__ __forceinline__ void store_box_gradient(Out* boxes, int64_t i, const Box<T>& g, T most) {
  store_box(
      boxes, i, Box<T>{saturated(g.x1, most), saturated(g.y1, most), saturated(g.x2, most), saturated(g.y2, most)});
}

template <int metric, typename T>
__device__ __forceinline__ BoxTerms<T> terms_of(const Box<T>& box) {
  const T angle = metric == kCiou ? aspect_angle(box.x2 - box.x1, box.y2 - box.y1) : T(0);
  return {box_area(box), angle};
}

template <typename T>
__device__ __forceinline__ Box<T> plus(const Box<T>& a, const Box<T>& b) {
  return {a.x1 + b.x1, a.y1 + b.y1, a.x2 + b.x2, a.y2 + b.y2};
}

template <typename T>
struct BoxAndTerms {
  Box<T> box;
  BoxTerms<T> terms;
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

// On the host: calls with_metric.template operator()<metric>().
template <typename F>
void dispatch_metric(int64_t metric, const F& with_metric) {
  switch (metric) {
    case kIou:
      return with_metric.template operator()<kIou>();
    case kGiou:
      return with_metric.template operator()<kGiou>();
    case kDiou:
      return with_metric.template operator()<kDiou>();
    default:
      return with_metric.template operator()<kCiou>();
  }
}

}  // namespace cvops::cuda
