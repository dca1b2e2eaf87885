// Loop bodies of depthwise_conv2d for channels_last, included by cpu/depthwise_conv2d-inl.h.
//
// Vectors run along the channels, blocks of up to 7 positions of a row are accumulated in registers, and a source
// vector is loaded once for all the positions that it reaches. Channels that fill no whole vector are covered by a last
// vector that overlaps the one before it, or by half a vector, or one by one if there are less than half a vector.
// Tensors are of the compute type; the order of addition is fixed: row by row of taps, bias first.

// X positions from `x`, one vector of channels. KX = 0: any taps; else KX adjacent taps, SX the stride.
template <typename T, int lanes, int X, int KX, int SX>
inline void correlate_nhwc_block(const Correlation<T>& job, const AxisPhase& rows, const AxisPhase& columns,
    const T* source, int64_t row, int64_t x, int64_t channel, T* target) {
  typedef Vec<T, lanes> V;
  const int64_t c = job.groups;
  V sum[X];
  const V init = job.bias ? load<T, lanes>(job.bias + channel) : V{};
#pragma GCC unroll 16
  for (int i = 0; i < X; ++i) sum[i] = init;
  if (job.prefetch) {
    // Seven positions of three rows are too many streams for the hardware to follow; what the next row of the target
    // adds is asked for one row ahead. Past the end this is harmless.
    for (int64_t k = 0; k < rows.stride; ++k) {
      const int64_t y = (row + 1) * rows.stride + rows.base + (rows.taps - 1) * rows.tap_step - k;
      const T* next = source + (y * job.source_w + x * columns.stride) * c + channel;
      unrolled<X*(SX == 0 ? 1 : SX)>(CVOPS_INLINED(auto i) { __builtin_prefetch(next + i * c, 0, 3); });
    }
    unrolled<X>(CVOPS_INLINED(
        auto i) { __builtin_prefetch(target + (rows.step * job.target_w + i * columns.step) * c, 1, 3); });
  }
  for (int64_t ky = 0; ky < rows.taps; ++ky) {
    const int64_t y = row * rows.stride + rows.base + ky * rows.tap_step;
    if (y < 0 || y >= job.source_h) continue;
    const T* line = source + y * job.source_w * c + channel;
    const T* weight =
        job.weight + channel + ((rows.weight_first + ky * rows.weight_step) * job.kw + columns.weight_first) * c;
    const int64_t weight_step = columns.weight_step * c;
    if constexpr (KX == 0) {
      for (int64_t kx = 0; kx < columns.taps; ++kx) {
        const V scale = load<T, lanes>(weight + kx * weight_step);
#pragma GCC unroll 16
        for (int i = 0; i < X; ++i) {
          const int64_t at = (x + i) * columns.stride + columns.base + kx * columns.tap_step;
          if (at >= 0 && at < job.source_w) sum[i] = fma_of<T, lanes>(scale, load<T, lanes>(line + at * c), sum[i]);
        }
      }
    } else {
      V scale[KX];
#pragma GCC unroll 16
      for (int kx = 0; kx < KX; ++kx) scale[kx] = load<T, lanes>(weight + kx * weight_step);
      const int64_t at = x * SX + columns.base;
#pragma GCC unroll 32
      for (int u = 0; u < (X - 1) * SX + KX; ++u) {
        if (static_cast<uint64_t>(at + u) >= static_cast<uint64_t>(job.source_w)) continue;
        const V value = load<T, lanes>(line + (at + u) * c);
#pragma GCC unroll 16
        for (int i = 0; i < X; ++i) {
          const int kx = u - i * SX;
          if (kx >= 0 && kx < KX) sum[i] = fma_of<T, lanes>(scale[kx], value, sum[i]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < X; ++i) store<T, lanes>(target + i * columns.step * c, sum[i]);
}

// X positions of channels [first, last); the last vector may overlap the one before it.
template <typename T, int X, int KX, int SX>
inline void correlate_nhwc_across(const Correlation<T>& job, const AxisPhase& rows, const AxisPhase& columns,
    const T* source, int64_t row, int64_t x, int64_t first, int64_t last, T* target) {
  constexpr int lanes = full_lanes<T>, half = lanes / 2;
  T* to = target + (columns.first + x * columns.step) * job.groups;
  for (int64_t c = first; c < last;) {
    if (job.groups < half) {
      correlate_nhwc_block<T, 1, 1, 0, 0>(job, rows, columns, source, row, x, c, to + c);
      for (int i = 1; i < X; ++i) {
        correlate_nhwc_block<T, 1, 1, 0, 0>(
            job, rows, columns, source, row, x + i, c, to + i * columns.step * job.groups + c);
      }
      ++c;
    } else if (last - c > half && job.groups >= lanes) {
      c = smaller(c, job.groups - lanes);
      correlate_nhwc_block<T, lanes, X, KX, SX>(job, rows, columns, source, row, x, c, to + c);
      c += lanes;
    } else {
      c = smaller(c, job.groups - half);
      correlate_nhwc_block<T, half, X, KX, SX>(job, rows, columns, source, row, x, c, to + c);
      c += half;
    }
  }
}

// One target row, in even chunks of channels whose sources for 7 positions and whose weights stay in L1.
template <typename T, int KX, int SX>
void correlate_nhwc_row_of(const Correlation<T>& job, const AxisPhase& rows, const AxisPhase& columns, const T* source,
    int64_t row, T* target) {
  constexpr int64_t most = 640 / sizeof(T);
  const int64_t chunk = ceil_div(ceil_div(job.groups, ceil_div(job.groups, most)), full_lanes<T>) * full_lanes<T>;
  for (int64_t c = 0; c < job.groups; c += chunk) {
    const int64_t last = smaller(c + chunk, job.groups);
    for (int64_t x = 0; x < columns.count;) {
      const int64_t left = columns.count - x;
      if (left > 4 && columns.count >= 7) {
        x = smaller(x, columns.count - 7);
        correlate_nhwc_across<T, 7, KX, SX>(job, rows, columns, source, row, x, c, last, target);
        x += 7;
      } else if (columns.count >= 4) {
        x = smaller(x, columns.count - 4);
        correlate_nhwc_across<T, 4, KX, SX>(job, rows, columns, source, row, x, c, last, target);
        x += 4;
      } else {
        correlate_nhwc_across<T, 1, 0, 0>(job, rows, columns, source, row, x, c, last, target);
        x += 1;
      }
    }
  }
}

template <typename T>
void correlate_nhwc_row(const Correlation<T>& job, const AxisPhase& rows, const AxisPhase& columns, const T* source,
    int64_t row, T* target) {
  if constexpr (sizeof(T) == 4) {
    if (columns.tap_step == 1 && columns.stride == 1) {
      switch (columns.taps) {
        case 1:
          return correlate_nhwc_row_of<T, 1, 1>(job, rows, columns, source, row, target);
        case 2:
          return correlate_nhwc_row_of<T, 2, 1>(job, rows, columns, source, row, target);
        case 3:
          return correlate_nhwc_row_of<T, 3, 1>(job, rows, columns, source, row, target);
        case 4:
          return correlate_nhwc_row_of<T, 4, 1>(job, rows, columns, source, row, target);
        case 5:
          return correlate_nhwc_row_of<T, 5, 1>(job, rows, columns, source, row, target);
        case 7:
          return correlate_nhwc_row_of<T, 7, 1>(job, rows, columns, source, row, target);
      }
    } else if (columns.tap_step == 1 && columns.stride == 2) {
      switch (columns.taps) {
        case 3:
          return correlate_nhwc_row_of<T, 3, 2>(job, rows, columns, source, row, target);
        case 5:
          return correlate_nhwc_row_of<T, 5, 2>(job, rows, columns, source, row, target);
        case 7:
          return correlate_nhwc_row_of<T, 7, 2>(job, rows, columns, source, row, target);
      }
    }
  }
  correlate_nhwc_row_of<T, 0, 0>(job, rows, columns, source, row, target);
}

// Rows [first, last) of the n * target_h rows of the target; groups are the channels, sources = targets = 1.
template <typename T>
void correlate_nhwc(const Correlation<T>& job, const T* source, T* target, int64_t first, int64_t last) {
  for (int64_t item = first; item < last; ++item) {
    const int64_t image = item / job.target_h, y = item % job.target_h;
    const AxisPhase& rows = job.rows[y % job.row_phases];
    const T* plane = source + image * job.source_h * job.source_w * job.groups;
    T* out = target + item * job.target_w * job.groups;
    for (int64_t q = 0; q < job.column_phases; ++q) {
      correlate_nhwc_row(job, rows, job.columns[q], plane, (y - rows.first) / rows.step, out);
    }
    if (job.activation != kNoActivation) activate_row(out, job.target_w * job.groups, job.activation);
  }
}

// sums[kx] += grad times source over X positions from `x` of one row of the gradient, one vector of channels.
template <typename T, int lanes, int X, int KX, int SX>
__attribute__((always_inline)) inline void grad_weight_nhwc_block(
    const WeightGradient& job, const T* grad, const T* line, int64_t x, Vec<T, lanes> (&sums)[KX]) {
  typedef Vec<T, lanes> V;
  const int64_t c = job.groups;
  V g[X];
  unrolled<X>(CVOPS_INLINED(auto i) { g[i] = load<T, lanes>(grad + (x + i) * c); });
  const int64_t at = x * SX + job.columns.base;
  unrolled<(X - 1) * SX + KX>(CVOPS_INLINED(auto u) {
    if (static_cast<uint64_t>(at + u) >= static_cast<uint64_t>(job.source_w)) return;
    const V value = load<T, lanes>(line + (at + u) * c);
    unrolled<X>(CVOPS_INLINED(auto i) {
      constexpr int kx = u - i * SX;
      if constexpr (kx >= 0 && kx < KX) sums[kx] = fma_of<T, lanes>(g[i], value, sums[kx]);
    });
  });
}

template <typename T, int lanes, int KX, int SX>
void grad_weight_nhwc_row_of(const WeightGradient& job, const T* grad, const T* plane, int64_t y, T* sums) {
  typedef Vec<T, lanes> V;
  for (int64_t ky = 0; ky < job.kh; ++ky) {
    const int64_t at = y * job.rows.stride + job.rows.base + ky * job.rows.tap_step;
    if (at < 0 || at >= job.source_h) continue;
    const T* line = plane + at * job.source_w * job.groups;
    T* row_sums = sums + ky * job.kw * lanes;
    V sum[KX] = {};
    int64_t x = 0;
    for (; x + 7 <= job.grad_w; x += 7) grad_weight_nhwc_block<T, lanes, 7, KX, SX>(job, grad, line, x, sum);
    for (; x < job.grad_w; ++x) grad_weight_nhwc_block<T, lanes, 1, KX, SX>(job, grad, line, x, sum);
    unrolled<KX>(CVOPS_INLINED(
        auto k) { store<T, lanes>(row_sums + k * lanes, load<T, lanes>(row_sums + k * lanes) + sum[k]); });
  }
}

template <typename T, int lanes>
void grad_weight_nhwc_row_any(const WeightGradient& job, const T* grad, const T* plane, int64_t y, T* sums) {
  typedef Vec<T, lanes> V;
  const int64_t c = job.groups;
  for (int64_t ky = 0; ky < job.kh; ++ky) {
    const int64_t at = y * job.rows.stride + job.rows.base + ky * job.rows.tap_step;
    if (at < 0 || at >= job.source_h) continue;
    const T* line = plane + at * job.source_w * c;
    for (int64_t kx = 0; kx < job.kw; ++kx) {
      V sum[2] = {};
      for (int64_t x = 0; x < job.grad_w; ++x) {
        const int64_t from = x * job.columns.stride + job.columns.base + kx * job.columns.tap_step;
        if (from < 0 || from >= job.source_w) continue;
        sum[x & 1] = fma_of<T, lanes>(load<T, lanes>(grad + x * c), load<T, lanes>(line + from * c), sum[x & 1]);
      }
      T* to = sums + (ky * job.kw + kx) * lanes;
      store<T, lanes>(to, load<T, lanes>(to) + (sum[0] + sum[1]));
    }
  }
}

template <typename T, int lanes>
void grad_weight_nhwc_row(const WeightGradient& job, const T* grad, const T* plane, int64_t y, T* sums) {
  if constexpr (sizeof(T) == 4 && lanes > 1) {
    if (job.columns.tap_step == 1 && job.columns.stride == 1) {
      switch (job.kw) {
        case 3:
          return grad_weight_nhwc_row_of<T, lanes, 3, 1>(job, grad, plane, y, sums);
        case 5:
          return grad_weight_nhwc_row_of<T, lanes, 5, 1>(job, grad, plane, y, sums);
        case 7:
          return grad_weight_nhwc_row_of<T, lanes, 7, 1>(job, grad, plane, y, sums);
      }
    } else if (job.columns.tap_step == 1 && job.columns.stride == 2) {
      switch (job.kw) {
        case 3:
          return grad_weight_nhwc_row_of<T, lanes, 3, 2>(job, grad, plane, y, sums);
        case 5:
          return grad_weight_nhwc_row_of<T, lanes, 5, 2>(job, grad, plane, y, sums);
        case 7:
          return grad_weight_nhwc_row_of<T, lanes, 7, 2>(job, grad, plane, y, sums);
      }
    }
  }
  grad_weight_nhwc_row_any<T, lanes>(job, grad, plane, y, sums);
}

// One vector of channels over images [begin, end): partial [kh * kw + 1, c], the gradient of the bias last.
template <typename T, int lanes>
void grad_weight_nhwc_vector(const WeightGradient& job, const T* grad, const T* source, int64_t begin, int64_t end,
    int64_t channel, T* sums, T* partial) {
  typedef Vec<T, lanes> V;
  const int64_t c = job.groups, taps = job.kh * job.kw;
  for (int64_t i = 0; i < (taps + 1) * lanes; ++i) sums[i] = T(0);
  for (int64_t image = begin; image < end; ++image) {
    const T* plane = source + image * job.source_h * job.source_w * c + channel;
    for (int64_t y = 0; y < job.grad_h; ++y) {
      const T* row = grad + (image * job.grad_h + y) * job.grad_w * c + channel;
      V sum{};
      for (int64_t x = 0; x < job.grad_w; ++x) sum += load<T, lanes>(row + x * c);
      store<T, lanes>(sums + taps * lanes, load<T, lanes>(sums + taps * lanes) + sum);
      grad_weight_nhwc_row<T, lanes>(job, row, plane, y, sums);
    }
  }
  for (int64_t i = 0; i <= taps; ++i) store<T, lanes>(partial + i * c + channel, load<T, lanes>(sums + i * lanes));
}

// Channels [channel, stop), whole vectors or the end of all channels.
template <typename T>
void grad_weight_nhwc(const WeightGradient& job, const T* grad, const T* source, int64_t begin, int64_t end,
    int64_t channel, int64_t stop, T* sums, T* partial) {
  constexpr int lanes = full_lanes<T>, half = lanes / 2;
  const int64_t c = job.groups;
  while (channel < stop) {
    if (c < half) {
      grad_weight_nhwc_vector<T, 1>(job, grad, source, begin, end, channel, sums, partial);
      ++channel;
    } else if (stop - channel > half && c >= lanes) {
      channel = smaller(channel, c - lanes);
      grad_weight_nhwc_vector<T, lanes>(job, grad, source, begin, end, channel, sums, partial);
      channel += lanes;
    } else {
      channel = smaller(channel, c - half);
      grad_weight_nhwc_vector<T, half>(job, grad, source, begin, end, channel, sums, partial);
      channel += half;
    }
  }
}
