// Loop bodies of match_boxes, compiled once per instruction set (cpu/foreach_isa.h). Plain IEEE arithmetic of box_iou:
// the same bits on every instruction set. Most pairs overlap less than what was found before, and need no division.
// Tiles are padded with NaN, which matches nothing.

#include "cpu/vec-inl.h"

// The smallest box around n anchors; NaN corners are left out.
template <typename T>
void match_hull(const BoxPlanes<T>& a, int64_t n, Box<T>* hull) {
  constexpr T infinity = T(__builtin_inf());
  Box<T> h{infinity, infinity, -infinity, -infinity};
  for (int64_t i = 0; i < n; ++i) {
    h.x1 = smaller(a.x1[i], h.x1), h.y1 = smaller(a.y1[i], h.y1);
    h.x2 = larger(a.x2[i], h.x2), h.y2 = larger(a.y2[i], h.y2);
  }
  *hull = h;
}

template <typename T>
bool match_meets(const Box<T>& hull, const Box<T>& box) {
  return box.x1 < hull.x2 && hull.x1 < box.x2 && box.y1 < hull.y2 && hull.y1 < box.y2;
}

// A vector of anchors against one target, as in ops/box_geometry.h.
template <typename T>
struct MatchOverlap {
  typedef Vec<T, full_lanes<T>> V;
  V area, box_union;

  MatchOverlap(const BoxPlanes<T>& a, int64_t i, const Box<T>& box, T box_area) {
    constexpr int lanes = full_lanes<T>;
    const V zero{}, x1 = load<T, lanes>(a.x1 + i), y1 = load<T, lanes>(a.y1 + i);
    const V x2 = load<T, lanes>(a.x2 + i), y2 = load<T, lanes>(a.y2 + i);
    const V right = x2 < box.x2 ? x2 : splat<T, lanes>(box.x2), left = x1 > box.x1 ? x1 : splat<T, lanes>(box.x1);
    const V low = y2 < box.y2 ? y2 : splat<T, lanes>(box.y2), top = y1 > box.y1 ? y1 : splat<T, lanes>(box.y1);
    const V width = right - left, height = low - top;
    area = (width > zero ? width : zero) * (height > zero ? height : zero);
    box_union = load<T, lanes>(a.area + i) + box_area - area;
  }

  V iou() const { return area / (box_union == T(0) ? splat<T, full_lanes<T>>(T(1)) : box_union); }
};

// Of n anchors, padded to whole vectors, and m targets: per anchor the best IoU and its target (unchanged where none is
// better), per target the best IoU and its anchor, counted from `first`. Ties keep the lowest index.
template <typename T>
void match_rows(const BoxPlanes<T>& a, int64_t first, int64_t n, const BoxPlanes<T>& b, int64_t m, T* __restrict best,
    match_index<T>* __restrict target, T* target_best, int64_t* target_anchor) {
  constexpr int lanes = full_lanes<T>;
  typedef Vec<T, lanes> V;
  Box<T> hull;
  match_hull(a, n, &hull);
  for (int64_t j = 0; j < m; ++j) {
    const Box<T> box = b.box(j);
    if (!match_meets(hull, box)) continue;
    for (int64_t i = 0; i < n; i += lanes) {
      const MatchOverlap<T> o(a, i, box, b.area[j]);
      const V old = load<T, lanes>(best + i), bound = old < target_best[j] ? old : splat<T, lanes>(target_best[j]);
      // An IoU above the bound means area > bound * union, and rounding the product keeps >=.
      if (!any_lane((o.area > T(0)) & (o.area >= bound * o.box_union))) continue;
      const V iou = o.iou();
      const auto better = iou > old;
      store<T, lanes>(best + i, better ? iou : old);
      const auto kept = load<match_index<T>, lanes>(target + i);
      store<match_index<T>, lanes>(target + i, better ? splat<match_index<T>, lanes>(j) : kept);
      if (!any_lane(iou > target_best[j])) continue;
      for (int l = 0; l < lanes; ++l) {
        if (iou[l] > target_best[j]) target_best[j] = iou[l], target_anchor[j] = first + i + l;
      }
    }
  }
}

// restored[i] |= anchor i ties with the best IoU of a target. A target that meets nothing ties with every anchor at 0;
// one whose best is negative takes no part.
template <typename T>
void match_restore_rows(const BoxPlanes<T>& a, int64_t n, const BoxPlanes<T>& b, int64_t m, const T* target_best,
    uint8_t* __restrict restored) {
  constexpr int lanes = full_lanes<T>;
  constexpr T slack = T(1) + 8 * std::numeric_limits<T>::epsilon();  // for the rounding of an equal quotient
  Box<T> hull;
  match_hull(a, n, &hull);
  for (int64_t j = 0; j < m; ++j) {
    const Box<T> box = b.box(j);
    const T best = target_best[j];
    if (best < T(0) || (best > T(0) && !match_meets(hull, box))) continue;
    for (int64_t i = 0; i < n; i += lanes) {
      const MatchOverlap<T> o(a, i, box, b.area[j]);
      if (best > T(0) && !any_lane((o.area > T(0)) & (o.area * slack >= best * o.box_union))) continue;
      const auto ties = o.iou() == best;
      if (!any_lane(ties)) continue;
      for (int l = 0; l < lanes; ++l) restored[i + l] |= ties[l] ? 1 : 0;
    }
  }
}
