// Loop bodies of depthwise_conv2d for channels_last, included by cpu/depthwise_conv2d-inl.h.
//
// Vectors run along the channels, blocks of up to 7 positions of a row are accumulated in registers, and a source
// vector is loaded once for all the positions that it reaches. Channels that fill no whole vector are covered by a last
// vector that overlaps the one before it, or by half a vector, or one by one if there are less than half a vector.
// Tensors are of the compute type; the order of addition is fixed: row by row of taps, bias first.

// X positions of the target. Tap rows that lie outside of the source are left out; `line` and `weight` are at channel 0
// of the first one, at the first tap of the first position.
template <typename T>
struct NhwcBlock {
  const T *line, *weight;
  int64_t taps, line_step, weight_row, weight_column;
  int64_t column;                    // of the source, at `line`
  const T *next_line, *next_target;  // what the next row of the target adds, if that is to be asked for
  int64_t next_lines, target_step;   // next_lines: rows of the source from next_line up
};

template <typename T>
inline NhwcBlock<T> nhwc_block(const Correlation<T>& job, const AxisPhase& rows, const AxisPhase& columns,
    const T* source, int64_t row, int64_t x, const T* target) {
  const int64_t c = job.groups, pitch = job.source_w * c, top = row * rows.stride + rows.base;
  const int64_t first = top < 0 ? ceil_div(-top, rows.tap_step) : 0;
  const int64_t last = top < job.source_h ? ceil_div(job.source_h - top, rows.tap_step) : 0;
  NhwcBlock<T> block;
  block.column = x * columns.stride + columns.base;
  block.line = source + (top + first * rows.tap_step) * pitch + block.column * c;
  block.weight = job.weight + ((rows.weight_first + first * rows.weight_step) * job.kw + columns.weight_first) * c;
  block.taps = smaller(last, rows.taps) - first;
  block.line_step = rows.tap_step * pitch;
  block.weight_row = rows.weight_step * job.kw * c, block.weight_column = columns.weight_step * c;
  block.next_line = source + (top + rows.stride + (rows.taps - 1) * rows.tap_step) * pitch + x * columns.stride * c;
  block.next_target = target + rows.step * job.target_w * c;
  block.next_lines = rows.stride, block.target_step = columns.step * c;
  return block;
}

// One vector of channels. KX = 0: any taps; else KX adjacent taps, SX the stride; `inside`: no column is left out.
template <typename T, int lanes, int X, int KX, int SX, bool inside>
__attribute__((always_inline)) inline void correlate_nhwc_vector(
    const Correlation<T>& job, const NhwcBlock<T>& block, const AxisPhase& columns, int64_t channel, T* target) {
  typedef Vec<T, lanes> V;
  const int64_t c = job.groups;
  V sum[X];
  const V init = job.bias ? load<T, lanes>(job.bias + channel) : V{};
  unrolled<X>(CVOPS_INLINED(auto i) { sum[i] = init; });
  // Seven positions of three rows are too many streams for the hardware to follow. Past the end this is harmless.
  if (job.prefetch && channel * static_cast<int64_t>(sizeof(T)) % 64 < lanes * static_cast<int64_t>(sizeof(T))) {
    for (int64_t k = 0; k < block.next_lines; ++k) {
      const T* next = block.next_line - k * job.source_w * c + channel;
      unrolled<X*(SX == 0 ? 1 : SX)>(CVOPS_INLINED(auto) { __builtin_prefetch(next, 0, 3), next += c; });
    }
    const T* next = block.next_target + channel;
    unrolled<X>(CVOPS_INLINED(auto) { __builtin_prefetch(next, 1, 3), next += block.target_step; });
  }
  const T *line = block.line + channel, *weight = block.weight + channel;
  for (int64_t ky = 0; ky < block.taps; ++ky, line += block.line_step, weight += block.weight_row) {
    if constexpr (KX == 0) {
      for (int64_t kx = 0; kx < columns.taps; ++kx) {
        const V scale = load<T, lanes>(weight + kx * block.weight_column);
        unrolled<X>(CVOPS_INLINED(auto i) {
          const int64_t at = i * columns.stride + kx * columns.tap_step;
          if (static_cast<uint64_t>(block.column + at) >= static_cast<uint64_t>(job.source_w)) return;
          sum[i] = fma_of<T, lanes>(scale, load<T, lanes>(line + at * c), sum[i]);
        });
      }
    } else {
      V scale[KX];
      unrolled<KX>(CVOPS_INLINED(auto kx) { scale[kx] = load<T, lanes>(weight + kx * block.weight_column); });
      const T* p = line;
      unrolled<(X - 1) * SX + KX>(CVOPS_INLINED(auto u) {
        if (inside || static_cast<uint64_t>(block.column + u) < static_cast<uint64_t>(job.source_w)) {
          const V value = load<T, lanes>(p);
          unrolled<X>(CVOPS_INLINED(auto i) {
            constexpr int kx = u - i * SX;
            if constexpr (kx >= 0 && kx < KX) sum[i] = fma_of<T, lanes>(scale[kx], value, sum[i]);
          });
        }
        p += c;
      });
    }
  }
  T* to = target + channel;
  unrolled<X>(CVOPS_INLINED(auto i) { store<T, lanes>(to, sum[i]), to += block.target_step; });
}

// Channels [first, last) of a block; the last vector may overlap the one before it.
template <typename T, int X, int KX, int SX, bool inside>
void correlate_nhwc_channels(const Correlation<T>& job, const NhwcBlock<T>& block, const AxisPhase& columns,
    int64_t first, int64_t last, T* target) {
  constexpr int lanes = full_lanes<T>, half = lanes / 2;
  for (int64_t c = first; c < last;) {
    if (job.groups < half) {
      correlate_nhwc_vector<T, 1, X, KX, SX, inside>(job, block, columns, c, target);
      ++c;
    } else if (last - c > half && job.groups >= lanes) {
      c = smaller(c, job.groups - lanes);
      correlate_nhwc_vector<T, lanes, X, KX, SX, inside>(job, block, columns, c, target);
      c += lanes;
    } else {
      c = smaller(c, job.groups - half);
      correlate_nhwc_vector<T, half, X, KX, SX, inside>(job, block, columns, c, target);
      c += half;
    }
  }
}

// X positions of channels [first, last).
template <typename T, int X, int KX, int SX>
inline void correlate_nhwc_across(const Correlation<T>& job, const AxisPhase& rows, const AxisPhase& columns,
    const T* source, int64_t row, int64_t x, int64_t first, int64_t last, T* target) {
  T* to = target + (columns.first + x * columns.step) * job.groups;
  const NhwcBlock<T> block = nhwc_block(job, rows, columns, source, row, x, to);
  if (KX > 0 && block.column >= 0 && block.column + (X - 1) * SX + KX <= job.source_w)
    correlate_nhwc_channels<T, X, KX, SX, (KX > 0)>(job, block, columns, first, last, to);
  else
    correlate_nhwc_channels<T, X, KX, SX, false>(job, block, columns, first, last, to);
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
    const auto run = CVOPS_INLINED(auto taps, auto stride) {
      correlate_nhwc_row_of<T, taps, stride>(job, rows, columns, source, row, target);
    };
    if (columns.tap_step == 1 && if_common_or_part(columns.taps, columns.stride, run)) return;
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
  const int64_t c = job.groups, at = x * SX + job.columns.base;
  V g[X];
  const T* from = grad + x * c;
  unrolled<X>(CVOPS_INLINED(auto i) { g[i] = load<T, lanes>(from), from += c; });
  const T* p = line + at * c;
  unrolled<(X - 1) * SX + KX>(CVOPS_INLINED(auto u) {
    if (static_cast<uint64_t>(at + u) < static_cast<uint64_t>(job.source_w)) {
      const V value = load<T, lanes>(p);
      unrolled<X>(CVOPS_INLINED(auto i) {
        constexpr int kx = u - i * SX;
        if constexpr (kx >= 0 && kx < KX) sums[kx] = fma_of<T, lanes>(g[i], value, sums[kx]);
      });
    }
    p += c;
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
    const auto run = CVOPS_INLINED(auto taps, auto stride) {
      grad_weight_nhwc_row_of<T, lanes, taps, stride>(job, grad, plane, y, sums);
    };
    if (job.columns.tap_step == 1 && if_common(job.kw, job.columns.stride, run)) return;
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
