// Loop bodies of iou_loss, compiled once per instruction set (cpu/foreach_isa.h). No fused multiply-add: the same bits
// on every instruction set.

template <int metric, typename T>
void iou_loss_rows_of(const BoxPlanes<T>& a, const BoxPlanes<T>& b, int64_t n, MetricEps<T> eps, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = T(1) - box_metric<metric>(a.box(i), a.terms(i), b.box(i), b.terms(i), eps);
  }
}

template <typename T>
void iou_loss_rows(int64_t metric, const BoxPlanes<T>& a, const BoxPlanes<T>& b, int64_t n, MetricEps<T> eps, T* out) {
  if (metric == kIou) return iou_loss_rows_of<kIou>(a, b, n, eps, out);
  if (metric == kGiou) return iou_loss_rows_of<kGiou>(a, b, n, eps, out);
  if (metric == kDiou) return iou_loss_rows_of<kDiou>(a, b, n, eps, out);
  return iou_loss_rows_of<kCiou>(a, b, n, eps, out);
}

// Gradient planes of both boxes: ga holds x1, y1, x2, y2 of the first box, each of length n; gb of the second.
template <int metric, typename T>
void iou_loss_backward_rows_of(const BoxPlanes<T>& a, const BoxPlanes<T>& b, int64_t n, MetricEps<T> eps,
    const T* __restrict grad, T* __restrict ga, T* __restrict gb) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const auto g = box_metric_backward<metric>(a.box(i), a.terms(i), b.box(i), b.terms(i), eps, -grad[i]);
    ga[i] = g.a.x1, ga[n + i] = g.a.y1, ga[2 * n + i] = g.a.x2, ga[3 * n + i] = g.a.y2;
    gb[i] = g.b.x1, gb[n + i] = g.b.y1, gb[2 * n + i] = g.b.x2, gb[3 * n + i] = g.b.y2;
  }
}

template <typename T>
void iou_loss_backward_rows(int64_t metric, const BoxPlanes<T>& a, const BoxPlanes<T>& b, int64_t n, MetricEps<T> eps,
    const T* grad, T* ga, T* gb) {
  if (metric == kIou) return iou_loss_backward_rows_of<kIou>(a, b, n, eps, grad, ga, gb);
  if (metric == kGiou) return iou_loss_backward_rows_of<kGiou>(a, b, n, eps, grad, ga, gb);
  if (metric == kDiou) return iou_loss_backward_rows_of<kDiou>(a, b, n, eps, grad, ga, gb);
  return iou_loss_backward_rows_of<kCiou>(a, b, n, eps, grad, ga, gb);
}
