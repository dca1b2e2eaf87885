// Loop bodies of match_boxes, compiled once per instruction set (cpu/foreach_isa.h). Plain IEEE arithmetic of box_iou:
// the same bits on every instruction set. Most anchors overlap few targets, so tests that need no division come first.

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

template <typename T>
bool match_any(const BoxPlanes<T>& a, int64_t n, const Box<T>& box) {
  int any = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T width = smaller(a.x2[i], box.x2) - larger(a.x1[i], box.x1);
    const T height = smaller(a.y2[i], box.y2) - larger(a.y1[i], box.y1);
    any |= (width > T(0)) & (height > T(0));
  }
  return any != 0;
}

template <typename T>
void match_ious(const BoxPlanes<T>& a, int64_t n, const Box<T>& box, T area, T* __restrict iou) {
  const BoxTerms<T> terms{area, T(0)};
  for (int64_t i = 0; i < n; ++i) {
    iou[i] = box_metric<kIou>(a.box(i), a.terms(i), box, terms, MetricEps<T>{T(0), T(0)});
  }
}

// Of n <= tile anchors and m targets: per anchor the best IoU and its target (unchanged where none is better), per
// target the best IoU and its anchor, counted from `first`. Ties keep the lowest index.
template <int64_t tile, typename T>
void match_rows(const BoxPlanes<T>& a, int64_t first, int64_t n, const BoxPlanes<T>& b, int64_t m, T* __restrict best,
    int32_t* __restrict target, T* target_best, int64_t* target_anchor) {
  constexpr int64_t lanes = 16;
  Box<T> hull;
  match_hull(a, n, &hull);
  T iou[tile] = {};
  for (int64_t j = 0; j < m; ++j) {
    const Box<T> box = b.box(j);
    if (!match_meets(hull, box) || !match_any(a, n, box)) continue;
    match_ious(a, n, box, b.area[j], iou);
    const int32_t number = static_cast<int32_t>(j);
    for (int64_t i = 0; i < n; ++i) {
      const T old = best[i];
      const int32_t kept = target[i];
      const bool better = iou[i] > old;
      best[i] = better ? iou[i] : old;
      target[i] = better ? number : kept;
    }
    T high[lanes] = {};
    for (int64_t i = 0; i < tile; i += lanes) {
      for (int64_t l = 0; l < lanes; ++l) high[l] = larger(iou[i + l], high[l]);
    }
    T largest = high[0];
    for (int64_t l = 1; l < lanes; ++l) largest = larger(high[l], largest);
    if (largest > target_best[j]) {
      int64_t i = 0;
      while (iou[i] != largest) ++i;
      target_best[j] = largest;
      target_anchor[j] = first + i;
    }
  }
}

// restored[i] |= anchor i ties with the best IoU of a target. A target that meets nothing ties with every anchor at 0;
// one whose best is negative takes no part.
template <int64_t tile, typename T>
void match_restore_rows(const BoxPlanes<T>& a, int64_t n, const BoxPlanes<T>& b, int64_t m, const T* target_best,
    uint8_t* __restrict restored) {
  Box<T> hull;
  match_hull(a, n, &hull);
  T iou[tile] = {};
  for (int64_t j = 0; j < m; ++j) {
    const Box<T> box = b.box(j);
    const T best = target_best[j];
    if (best < T(0) || (best > T(0) && !(match_meets(hull, box) && match_any(a, n, box)))) continue;
    match_ious(a, n, box, b.area[j], iou);
    for (int64_t i = 0; i < n; ++i) restored[i] |= iou[i] == best ? 1 : 0;
  }
}
