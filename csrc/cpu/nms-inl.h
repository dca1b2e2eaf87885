// Loop bodies of the NMS family, compiled once per instruction set (cpu/foreach_isa.h). The decisive comparison is
// plain IEEE arithmetic without fused multiply-add, so every instruction set keeps the same boxes.

// dead[j] |= IoU(box, planes[j]) > threshold, for j in [0, n). Most blocks have no such j, so a cheap test that can
// only err on the safe side (no division) decides first whether the exact one is needed.
template <typename T>
void nms_suppress(
    const Box<T>& box, T area, const BoxPlanes<T>& planes, int64_t n, T threshold, uint8_t* __restrict dead) {
  const T safe = threshold * (T(1) - T(1e-6));
  constexpr int64_t block = 128;
  for (int64_t start = 0; start < n; start += block) {
    const int64_t count = smaller(block, n - start);
    const BoxPlanes<T> other = planes.from(start);
    int any = 0;
    for (int64_t j = 0; j < count; ++j) {
      const Overlap<T> o = overlap(box, area, other.box(j), other.area[j]);
      any |= (o.area >= safe * o.box_union) & (o.area > T(0));
    }
    if (!any) continue;
    uint8_t* __restrict flags = dead + start;
    for (int64_t j = 0; j < count; ++j) {
      const Overlap<T> o = overlap(box, area, other.box(j), other.area[j]);
      flags[j] |= o.area / o.box_union > threshold ? 1 : 0;
    }
  }
}

// iou[j] = IoU(box, planes[j]).
template <typename T>
void nms_iou_row(const Box<T>& box, T area, const BoxPlanes<T>& planes, int64_t n, T* __restrict iou) {
  const BoxTerms<T> terms{area, T(0)};
  for (int64_t j = 0; j < n; ++j) {
    iou[j] = box_metric<kIou>(box, terms, planes.box(j), planes.terms(j), MetricEps<T>{T(0), T(0)});
  }
}

// The largest IoU of box with planes[0, n), 0 for none. Sixteen lanes, so the loop vectorises.
template <typename T>
void nms_largest_iou(const Box<T>& box, T area, const BoxPlanes<T>& planes, int64_t n, T* largest) {
  constexpr int64_t lanes = 16;
  T best[lanes] = {};
  const BoxTerms<T> terms{area, T(0)};
  for (int64_t start = 0; start < n; start += lanes) {
    const BoxPlanes<T> other = planes.from(start);
    const int64_t count = smaller(lanes, n - start);
    for (int64_t l = 0; l < count; ++l) {
      best[l] = larger(box_metric<kIou>(box, terms, other.box(l), other.terms(l), MetricEps<T>{}), best[l]);
    }
  }
  for (int64_t l = 0; l < lanes; ++l) *largest = larger(best[l], l ? *largest : T(0));
}

// The smallest decay that the higher-scored planes[0, n) ask of box, before the exponential of the Gaussian form:
// linear (1 - iou) / (1 - covered), Gaussian covered^2 - iou^2, where covered[i] is i's own largest IoU with a
// higher-scored box. A box that duplicates a higher one (covered = 1) leaves the judgement to that one.
template <typename T>
void nms_smallest_decay(
    bool gaussian, const Box<T>& box, T area, const BoxPlanes<T>& planes, const T* covered, int64_t n, T* smallest) {
  constexpr int64_t lanes = 16;
  const T neutral = gaussian ? T(0) : T(1);
  T least[lanes];
  for (int64_t l = 0; l < lanes; ++l) least[l] = neutral;
  const BoxTerms<T> terms{area, T(0)};
  for (int64_t start = 0; start < n; start += lanes) {
    const BoxPlanes<T> other = planes.from(start);
    const T* __restrict c = covered + start;
    const int64_t count = smaller(lanes, n - start);
    for (int64_t l = 0; l < count; ++l) {
      const T iou = box_metric<kIou>(box, terms, other.box(l), other.terms(l), MetricEps<T>{});
      const T free = T(1) - c[l];
      const T linear = free > T(0) ? (T(1) - iou) / (free > T(0) ? free : T(1)) : T(1);
      least[l] = smaller(gaussian ? c[l] * c[l] - iou * iou : linear, least[l]);
    }
  }
  for (int64_t l = 0; l < lanes; ++l) *smallest = smaller(least[l], l ? *smallest : neutral);
}
