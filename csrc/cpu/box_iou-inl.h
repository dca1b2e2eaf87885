// Loop bodies of box_iou, compiled once per instruction set (cpu/foreach_isa.h). No fused multiply-add and a fixed
// order of summation: the results are the same bits on every instruction set.

// out[i, j] = metric(a[i], b[j]) for rows [first, last) of a and all m of b. Columns go in blocks that stay in L2, so
// that rows are written whole, one after the other: the hardware loses its stream at every gap. Lines are asked for 2
// KB before they are written.
template <int metric, typename T>
void box_iou_rows_of(
    const BoxPlanes<T>& a, int64_t first, int64_t last, const BoxPlanes<T>& b, int64_t m, MetricEps<T> eps, T* out) {
  constexpr int64_t block = 32768 / sizeof(T), run = 512 / sizeof(T), ahead = 2048 / sizeof(T), line = 64 / sizeof(T);
  for (int64_t start = 0; start < m; start += block) {
    const int64_t end = smaller(start + block, m);
    for (int64_t i = first; i < last; ++i) {
      const Box<T> box = a.box(i);
      const BoxTerms<T> terms = a.terms(i);
      for (int64_t from = start; from < end; from += run) {
        const BoxPlanes<T> columns = b.from(from);
        const int64_t count = smaller(run, end - from);
        T* __restrict row = out + i * m + from;
        for (int64_t j = 0; j < run; j += line) __builtin_prefetch(row + ahead + j, 1, 3);
        for (int64_t j = 0; j < count; ++j) {
          row[j] = box_metric<metric>(box, terms, columns.box(j), columns.terms(j), eps);
        }
      }
    }
  }
}

template <typename T>
void box_iou_rows(int64_t metric, const BoxPlanes<T>& a, int64_t first, int64_t last, const BoxPlanes<T>& b, int64_t m,
    MetricEps<T> eps, T* out) {
  if (metric == kIou) return box_iou_rows_of<kIou>(a, first, last, b, m, eps, out);
  if (metric == kGiou) return box_iou_rows_of<kGiou>(a, first, last, b, m, eps, out);
  if (metric == kDiou) return box_iou_rows_of<kDiou>(a, first, last, b, m, eps, out);
  return box_iou_rows_of<kCiou>(a, first, last, b, m, eps, out);
}

// grad_a[i] = sum over j of grad[i, j] d metric(a[i], b[j]) / d a[i], for rows [first, last). Lane l adds the columns
// j = l (mod 16) and the lanes are added in order, so the sum does not depend on the instruction set or the threads.
template <int metric, typename T>
void box_iou_backward_rows_of(const BoxPlanes<T>& a, int64_t first, int64_t last, const BoxPlanes<T>& b, int64_t m,
    MetricEps<T> eps, const T* grad, T* grad_a) {
  constexpr int lanes = 16;
  for (int64_t i = first; i < last; ++i) {
    const Box<T> box = a.box(i);
    const BoxTerms<T> terms = a.terms(i);
    T x1[lanes] = {}, y1[lanes] = {}, x2[lanes] = {}, y2[lanes] = {};
    const T* __restrict row = grad + i * m;
    for (int64_t start = 0; start < m; start += lanes) {
      const int count = static_cast<int>(smaller<int64_t>(lanes, m - start));
      const BoxPlanes<T> columns = b.from(start);
      for (int l = 0; l < count; ++l) {
        const Box<T> g =
            box_metric_backward<metric>(box, terms, columns.box(l), columns.terms(l), eps, row[start + l]).a;
        x1[l] += g.x1, y1[l] += g.y1, x2[l] += g.x2, y2[l] += g.y2;
      }
    }
    for (int l = 1; l < lanes; ++l) x1[0] += x1[l], y1[0] += y1[l], x2[0] += x2[l], y2[0] += y2[l];
    grad_a[4 * i] = x1[0], grad_a[4 * i + 1] = y1[0], grad_a[4 * i + 2] = x2[0], grad_a[4 * i + 3] = y2[0];
  }
}

// grad_b[j] = sum over i, in order, of grad[i, j] d metric(a[i], b[j]) / d b[j], for columns [first, last).
template <int metric, typename T>
void box_iou_backward_columns_of(const BoxPlanes<T>& a, int64_t n, const BoxPlanes<T>& b, int64_t first, int64_t last,
    int64_t m, MetricEps<T> eps, const T* grad, T* grad_b) {
  constexpr int64_t block = 256;
  T x1[block], y1[block], x2[block], y2[block];
  for (int64_t start = first; start < last; start += block) {
    const int64_t count = smaller(block, last - start);
    const BoxPlanes<T> columns = b.from(start);
    for (int64_t j = 0; j < count; ++j) x1[j] = y1[j] = x2[j] = y2[j] = T(0);
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> box = a.box(i);
      const BoxTerms<T> terms = a.terms(i);
      const T* __restrict row = grad + i * m + start;
      for (int64_t j = 0; j < count; ++j) {
        const Box<T> g = box_metric_backward<metric>(box, terms, columns.box(j), columns.terms(j), eps, row[j]).b;
        x1[j] += g.x1, y1[j] += g.y1, x2[j] += g.x2, y2[j] += g.y2;
      }
    }
    for (int64_t j = 0; j < count; ++j) {
      T* to = grad_b + 4 * (start + j);
      to[0] = x1[j], to[1] = y1[j], to[2] = x2[j], to[3] = y2[j];
    }
  }
}

template <typename T>
void box_iou_backward_rows(int64_t metric, const BoxPlanes<T>& a, int64_t first, int64_t last, const BoxPlanes<T>& b,
    int64_t m, MetricEps<T> eps, const T* grad, T* grad_a) {
  if (metric == kIou) return box_iou_backward_rows_of<kIou>(a, first, last, b, m, eps, grad, grad_a);
  if (metric == kGiou) return box_iou_backward_rows_of<kGiou>(a, first, last, b, m, eps, grad, grad_a);
  if (metric == kDiou) return box_iou_backward_rows_of<kDiou>(a, first, last, b, m, eps, grad, grad_a);
  return box_iou_backward_rows_of<kCiou>(a, first, last, b, m, eps, grad, grad_a);
}

template <typename T>
void box_iou_backward_columns(int64_t metric, const BoxPlanes<T>& a, int64_t n, const BoxPlanes<T>& b, int64_t first,
    int64_t last, int64_t m, MetricEps<T> eps, const T* grad, T* grad_b) {
  if (metric == kIou) return box_iou_backward_columns_of<kIou>(a, n, b, first, last, m, eps, grad, grad_b);
  if (metric == kGiou) return box_iou_backward_columns_of<kGiou>(a, n, b, first, last, m, eps, grad, grad_b);
  if (metric == kDiou) return box_iou_backward_columns_of<kDiou>(a, n, b, first, last, m, eps, grad, grad_b);
  return box_iou_backward_columns_of<kCiou>(a, n, b, first, last, m, eps, grad, grad_b);
}
