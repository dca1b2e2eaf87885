// Loop bodies of depthwise_conv2d for NCHW, compiled once per instruction set (cpu/foreach_isa.h).
//
// A strip of a plane is copied into zero-padded scratch memory that stays in cache, every column stride phase apart, so
// that all loads are unmasked and contiguous whatever the stride. Then blocks of 7 rows by one vector are accumulated
// in registers: a source vector is loaded once for all the rows that it reaches. An output adds its taps in one fixed
// order (column by column, bias first), whatever block it falls into, so results do not depend on threads or strips.

#include "cpu/vec-inl.h"
#include "cpu/activation-inl.h"

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

constexpr int64_t kBlockRows = 7;  // 7, 14, 28, 56 and 112 rows are whole blocks
constexpr int64_t kRestRows = 4;

// Asks for the next plane that is read or written, 16 KB of it at most. Planes of a few hundred bytes are over before
// the processor sees a stream, and masked loads wait for one another's cache misses on AMD's processors.
template <bool write, typename S>
inline void prefetch_plane(const S* plane, int64_t size) {
  constexpr int64_t line = 64 / sizeof(S), most = 256 * line;
  for (int64_t i = 0; i < smaller(size, most); i += line) __builtin_prefetch(plane + i, write, 2);
}

// Calls run(taps, stride), both constants, if `n` is one of the taps; says whether it did.
template <int stride, int... taps, typename Run>
inline bool among(int64_t n, const Run& run) {
  return (
      (n == taps && (run(std::integral_constant<int, taps>{}, std::integral_constant<int, stride>{}), true)) || ...);
}

// The kernels that have code of their own, in one direction.
template <typename Run>
inline bool if_common(int64_t taps, int64_t stride, const Run& run) {
  return (stride == 1 && among<1, 3, 5, 7>(taps, run)) || (stride == 2 && among<2, 3, 5, 7>(taps, run));
}

// And with the parts of them that the phases of a gradient have.
template <typename Run>
inline bool if_common_or_part(int64_t taps, int64_t stride, const Run& run) {
  return if_common(taps, stride, run) || (stride == 1 && among<1, 1, 2, 4>(taps, run));
}

// One block: R rows, `count` <= lanes columns. Row r reads source rows r * SY + ky; KH = 0: any number of taps `kh`.
template <typename T, int lanes, int R, int KH, int SY>
inline void correlate_block(const T* source, int64_t pitch, int64_t stride, int64_t tap_rows, const int64_t* columns,
    int64_t kw, const T* weight, int64_t weight_row, int64_t weight_column, int64_t kh, T init, bool add, T* target,
    int64_t target_pitch, int64_t count) {
  typedef Vec<T, lanes> V;
  V sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sum[r] = add ? load_first<T, lanes>(target + r * target_pitch, count) : splat<T, lanes>(init);
  }
  for (int64_t kx = 0; kx < kw; ++kx) {
    const T* from = source + columns[kx];
    const T* w = weight + kx * weight_column;
    if constexpr (KH == 0) {
      for (int64_t ky = 0; ky < kh; ++ky) {
        const V scale = splat<T, lanes>(w[ky * weight_row]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const V value = load<T, lanes>(from + (r * stride + ky * tap_rows) * pitch);
          sum[r] = fma_of<T, lanes>(scale, value, sum[r]);
        }
      }
    } else {
      V scale[KH];
#pragma GCC unroll 16
      for (int ky = 0; ky < KH; ++ky) scale[ky] = splat<T, lanes>(w[ky * weight_row]);
#pragma GCC unroll 32
      for (int q = 0; q < (R - 1) * SY + KH; ++q) {
        const V value = load<T, lanes>(from + q * pitch);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const int ky = q - r * SY;
          if (ky >= 0 && ky < KH) sum[r] = fma_of<T, lanes>(scale[ky], value, sum[r]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) store_first<T, lanes>(target + r * target_pitch, sum[r], count);
}

// Source rows of one tap column are `tap_rows` apart, those of consecutive target rows `stride`, both times pitch.
template <typename T>
struct RowsJob {
  const T* source;
  int64_t pitch, stride, tap_rows;
  const int64_t* columns;
  int64_t kw;
  const T* weight;
  int64_t weight_row, weight_column, kh;
  T init;
  bool add;  // to what the target holds
  T* target;
  int64_t target_pitch, rows, width;
};

template <typename T, int R, int KH, int SY>
inline void correlate_across(const RowsJob<T>& job, int64_t row) {
  constexpr int lanes = full_lanes<T>, half = lanes / 2;
  for (int64_t x = 0; x < job.width; x += lanes) {
    const T* source = job.source + row * job.stride * job.pitch + x;
    T* target = job.target + row * job.target_pitch + x;
    const int64_t count = job.width - x;
    if (count > half) {
      correlate_block<T, lanes, R, KH, SY>(source, job.pitch, job.stride, job.tap_rows, job.columns, job.kw, job.weight,
          job.weight_row, job.weight_column, job.kh, job.init, job.add, target, job.target_pitch, count);
    } else {
      correlate_block<T, half, R, KH, SY>(source, job.pitch, job.stride, job.tap_rows, job.columns, job.kw, job.weight,
          job.weight_row, job.weight_column, job.kh, job.init, job.add, target, job.target_pitch, count);
    }
  }
}

// The last block may overlap the one before it, unless it would add twice.
template <typename T, int KH, int SY>
void correlate_rows_of(const RowsJob<T>& job) {
  int64_t row = 0;
  while (row < job.rows) {
    const int64_t left = job.rows - row;
    if (left >= kBlockRows || (left > kRestRows && job.rows >= kBlockRows && !job.add)) {
      row = smaller(row, job.rows - kBlockRows);
      correlate_across<T, kBlockRows, KH, SY>(job, row);
      row += kBlockRows;
    } else if (left >= kRestRows || (job.rows >= kRestRows && !job.add)) {
      row = smaller(row, job.rows - kRestRows);
      correlate_across<T, kRestRows, KH, SY>(job, row);
      row += kRestRows;
    } else {
      correlate_across<T, 1, 0, 0>(job, row);
      ++row;
    }
  }
}

template <typename T>
void correlate_rows(const RowsJob<T>& job) {
  if constexpr (sizeof(T) == 4) {
    const auto run = CVOPS_INLINED(auto taps, auto stride) {
      correlate_rows_of<T, taps, stride>(job);
    };
    if (job.tap_rows == 1) {
      if (if_common_or_part(job.kh, job.stride, run)) return;
    } else if (job.stride == 1 && job.kh <= 7) {
      // Dilated: the rows that are equal modulo the dilation are a plane of their own.
      for (int64_t phase = 0; phase < smaller(job.tap_rows, job.rows); ++phase) {
        RowsJob<T> part = job;
        part.source += phase * job.pitch, part.target += phase * job.target_pitch;
        part.pitch *= job.tap_rows, part.target_pitch *= job.tap_rows, part.tap_rows = 1;
        part.rows = (job.rows - phase + job.tap_rows - 1) / job.tap_rows;
        correlate_rows(part);
      }
      return;
    }
  }
  correlate_rows_of<T, 0, 0>(job);
}

// A row in the compute type: itself, or converted into `line`.
template <typename T, typename S>
inline const T* as_computed(const S* row, int64_t n, T* line) {
  if constexpr (std::is_same_v<S, T>) {
    return row;
  } else {
    convert_row<T, true>(line, row, n);
    return line;
  }
}

// Scratch rows [0, rows) = source rows [first, first + rows) of a plane, zeros outside of it. Row ends may be overrun
// by zeros, because the next row is written after.
template <typename T, typename S>
void pack_rows(const S* plane, int64_t height, int64_t width, int64_t first, int64_t rows, int64_t stride,
    const StripLayout& at, T* scratch) {
  const int64_t used = smaller(width, at.used_columns);
  for (int64_t r = 0; r < rows; ++r) {
    T* to = scratch + r * at.pitch;
    const int64_t y = first + r;
    if (y < 0 || y >= height) {
      for (int64_t i = 0; i < at.pitch; ++i) to[i] = T(0);
      continue;
    }
    const S* from = plane + y * width;
    if (stride == 1) {
      convert_row<T, true>(to + at.left, from, used);
      continue;
    }
    const T* line = as_computed(from, used, scratch + at.line_offset);
    for (int64_t phase = 0; phase < stride; ++phase) {
      // The first column of this phase is the least x >= 0 with (x + left) % stride == phase.
      const int64_t x0 = (phase - at.left % stride + stride) % stride;
      T* row = to + phase * at.phase_pitch + (x0 + at.left) / stride;
      if (stride == 2) {
        for (int64_t i = 0; x0 + 2 * i < used; ++i) row[i] = line[x0 + 2 * i];
      } else {
        for (int64_t i = 0; x0 + i * stride < used; ++i) row[i] = line[x0 + i * stride];
      }
    }
  }
}

template <typename T>
void activate_row(T* row, int64_t n, int64_t activation) {
  constexpr int lanes = full_lanes<T>;
  for (int64_t i = 0; i < n; i += lanes) {
    const Vec<T, lanes> v = load_first<T, lanes>(row + i, n - i);
    store_first<T, lanes>(row + i, activated<T, lanes>(v, activation), n - i);
  }
}

// A target row from `phases` scratch rows that are `pitch` apart: column phase + i * phases is place i of a row.
template <typename T, typename S>
void interleave_row(const T* from, int64_t pitch, int64_t phases, int64_t width, T* line, S* to) {
  if (phases == 1) return round_row<T>(to, from, width);
  T* row;
  if constexpr (std::is_same_v<S, T>)
    row = to;
  else
    row = line;
  if (phases == 2) {
    const T* odd = from + pitch;
#pragma GCC ivdep
    for (int64_t i = 0; i < width / 2; ++i) row[2 * i] = from[i], row[2 * i + 1] = odd[i];
    if (width % 2) row[width - 1] = from[width / 2];
  } else {
    for (int64_t phase = 0; phase < phases; ++phase) {
      for (int64_t i = 0; phase + i * phases < width; ++i) row[phase + i * phases] = from[phase * pitch + i];
    }
  }
  if constexpr (!std::is_same_v<S, T>) round_row<T>(to, static_cast<const T*>(line), width);
}

#include "cpu/depthwise_conv2d_direct-inl.h"

// Where the source column of each tap of target column 0 lies in a scratch row.
inline void find_tap_columns(const AxisPhase& columns, int64_t stride, const StripLayout& at, int64_t* found) {
  for (int64_t k = 0; k < columns.taps; ++k) {
    const int64_t x = columns.base + at.left + k * columns.tap_step;
    found[k] = x % stride * at.phase_pitch + x / stride;
  }
}

struct RowRange {
  int64_t first, last;  // without the last
};

// Which rows of a phase lie among `rows` of the target.
inline RowRange rows_of_phase(const AxisPhase& phase, RowRange rows) {
  return {ceil_div(rows.first - phase.first, phase.step), ceil_div(rows.last - phase.first, phase.step)};
}

// The rows of the source that `rows` of the target read, some of them outside of it.
template <typename T>
RowRange source_rows(const Correlation<T>& job, RowRange rows) {
  RowRange read{INT64_MAX, INT64_MIN};
  for (int64_t p = 0; p < job.row_phases; ++p) {
    const AxisPhase& phase = job.rows[p];
    const RowRange own = rows_of_phase(phase, rows);
    if (own.last <= own.first || phase.taps == 0) continue;
    read.first = smaller(read.first, own.first * phase.stride + phase.base);
    const int64_t last_tap = phase.base + (phase.taps - 1) * phase.tap_step;
    read.last = larger(read.last, (own.last - 1) * phase.stride + last_tap + 1);
  }
  return read.first > read.last ? RowRange{0, 0} : read;
}

// Where a strip of a target plane is computed: in the plane, or in scratch memory, column phases apart.
template <typename T>
struct StripTarget {
  T* data;  // of the first row
  int64_t row_pitch, phase_pitch;
};

// All phases of `rows` of one target plane, from a packed strip of the source, whose first row is `source_first`.
template <typename T>
void correlate_strip(const Correlation<T>& job, const StripLayout& at, const T* strip, int64_t source_first,
    const T* weight, T init, bool add, RowRange rows, const StripTarget<T>& target, int64_t* offsets) {
  for (int64_t p = 0; p < job.row_phases; ++p) {
    const AxisPhase& phase = job.rows[p];
    const RowRange own = rows_of_phase(phase, rows);
    if (own.last <= own.first) continue;
    for (int64_t q = 0; q < job.column_phases; ++q) {
      const AxisPhase& columns = job.columns[q];
      find_tap_columns(columns, job.columns[0].stride, at, offsets);
      const bool empty = phase.taps == 0 || columns.taps == 0;
      RowsJob<T> part{};
      part.source = empty ? strip : strip + (own.first * phase.stride + phase.base - source_first) * at.pitch;
      part.pitch = at.pitch, part.stride = phase.stride, part.tap_rows = phase.taps > 1 ? phase.tap_step : 1;
      part.columns = offsets, part.kw = empty ? 0 : columns.taps, part.kh = empty ? 1 : phase.taps;
      part.weight = weight + phase.weight_first * job.kw + columns.weight_first;
      part.weight_row = phase.weight_step * job.kw, part.weight_column = columns.weight_step;
      part.init = init, part.add = add;
      const int64_t first_row = phase.first + own.first * phase.step - rows.first;
      part.target = target.data + first_row * target.row_pitch + q * target.phase_pitch;
      part.target_pitch = phase.step * target.row_pitch;
      part.rows = own.last - own.first, part.width = columns.count;
      correlate_rows(part);
    }
  }
}

// Items [first, last) of n * groups * strips. `scratch` holds at.size elements; `offsets` kw of them.
template <typename T, typename S>
void correlate_nchw(const Correlation<T>& job, const StripLayout& at, const S* source, S* target, int64_t first,
    int64_t last, T* scratch, int64_t* offsets) {
  if constexpr (std::is_same_v<S, float>) {
    if (correlate_direct(job, at, source, target, first, last)) return;
  }
  const int64_t pairs = larger(job.sources, job.targets), taps = job.kh * job.kw;
  const bool in_place = std::is_same_v<S, T> && job.column_phases == 1;
  for (int64_t i = 0; i < at.size; ++i) scratch[i] = T(0);
  for (int64_t item = first; item < last; ++item) {
    const int64_t image_group = item / at.strips, group = image_group % job.groups;
    const int64_t begin = item % at.strips * at.strip_rows;
    const RowRange rows{begin, smaller(begin + at.strip_rows, job.target_h)}, read = source_rows(job, rows);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const int64_t source_index = job.sources > 1 ? pair : 0, target_index = job.targets > 1 ? pair : 0;
      if (pair == 0 || job.sources > 1) {
        const int64_t plane = image_group * job.sources + source_index;
        pack_rows(source + plane * job.source_h * job.source_w, job.source_h, job.source_w, read.first,
            read.last - read.first, job.columns[0].stride, at, scratch);
      }
      S* out = target + (image_group * job.targets + target_index) * job.target_h * job.target_w;
      StripTarget<T> to{scratch + at.target_offset, job.column_phases * at.columns, at.columns};
      if (in_place) to = {reinterpret_cast<T*>(out) + begin * job.target_w, job.target_w, 0};
      const T init = job.bias ? job.bias[group * job.targets + target_index] : T(0);
      correlate_strip(job, at, scratch, read.first, job.weight + (group * pairs + pair) * taps, init, source_index > 0,
          rows, to, offsets);
      if (job.sources > 1 && pair + 1 < pairs) continue;
      if (job.activation != kNoActivation) {
        activate_row(to.data, (rows.last - rows.first) * to.row_pitch, job.activation);
      }
      if (in_place) continue;
      for (int64_t y = rows.first; y < rows.last; ++y) {
        interleave_row(to.data + (y - rows.first) * to.row_pitch, to.phase_pitch, job.column_phases, job.target_w,
            scratch + at.line_offset, out + y * job.target_w);
      }
    }
  }
}

// sums[ky][kx] += sum over a block of R rows of grad times source, for K tap columns at once.
template <typename T, int lanes, int R, int KH, int SY, int K>
inline void grad_weight_block(const T* grad, int64_t grad_pitch, const T* source, int64_t pitch, const int64_t* columns,
    int64_t count, Vec<T, lanes> (&sums)[K][KH]) {
  typedef Vec<T, lanes> V;
  V g[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) g[r] = load_first<T, lanes>(grad + r * grad_pitch, count);
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
    const T* from = source + columns[k];
#pragma GCC unroll 32
    for (int q = 0; q < (R - 1) * SY + KH; ++q) {
      const V value = load_first<T, lanes>(from + q * pitch, count);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const int ky = q - r * SY;
        if (ky >= 0 && ky < KH) sums[k][ky] = fma_of<T, lanes>(g[r], value, sums[k][ky]);
      }
    }
  }
}

template <typename T>
struct GradRows {
  const T* grad;
  int64_t grad_pitch, rows, width;
  const T* source;
  int64_t pitch, stride, tap_rows;
  const int64_t* columns;
  int64_t kh, kw;
  T* sums;  // [kw, kh, full_lanes<T>]
};

template <typename T, int lanes, int KH, int SY, int K>
void grad_weight_columns(const GradRows<T>& job, int64_t kx) {
  typedef Vec<T, lanes> V;
  V sums[K][KH] = {};
  for (int64_t row = 0; row < job.rows;) {
    const bool block = job.rows - row >= kBlockRows;
    const T* grad = job.grad + row * job.grad_pitch;
    const T* source = job.source + row * SY * job.pitch;
    for (int64_t x = 0; x < job.width; x += lanes) {
      const int64_t count = job.width - x;
      if (block) {
        grad_weight_block<T, lanes, kBlockRows, KH, SY, K>(
            grad + x, job.grad_pitch, source + x, job.pitch, job.columns + kx, count, sums);
      } else {
        grad_weight_block<T, lanes, 1, KH, SY, K>(
            grad + x, job.grad_pitch, source + x, job.pitch, job.columns + kx, count, sums);
      }
    }
    row += block ? kBlockRows : 1;
  }
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int ky = 0; ky < KH; ++ky) {
      T* to = job.sums + ((kx + k) * KH + ky) * full_lanes<T>;
      store<T, lanes>(to, load<T, lanes>(to) + sums[k][ky]);
    }
  }
}

template <typename T, int lanes, int KH, int SY>
void grad_weight_rows_of(const GradRows<T>& job) {
  constexpr int group = KH == 7 ? 2 : 3;
  int64_t kx = 0;
  for (; kx + group <= job.kw; kx += group) grad_weight_columns<T, lanes, KH, SY, group>(job, kx);
  if constexpr (group == 3) {
    for (; kx + 2 <= job.kw; kx += 2) grad_weight_columns<T, lanes, KH, SY, 2>(job, kx);
  }
  for (; kx < job.kw; ++kx) grad_weight_columns<T, lanes, KH, SY, 1>(job, kx);
}

// Any kernel, stride and dilation: one tap at a time, four rows apart.
template <typename T, int lanes>
void grad_weight_rows_any(const GradRows<T>& job) {
  typedef Vec<T, lanes> V;
  for (int64_t kx = 0; kx < job.kw; ++kx) {
    for (int64_t ky = 0; ky < job.kh; ++ky) {
      V sums[4] = {};
      const T* source = job.source + job.columns[kx] + ky * job.tap_rows * job.pitch;
      for (int64_t x = 0; x < job.width; x += lanes) {
        const int64_t count = job.width - x;
        for (int64_t row = 0; row < job.rows; ++row) {
          const V g = load_first<T, lanes>(job.grad + row * job.grad_pitch + x, count);
          const V value = load_first<T, lanes>(source + row * job.stride * job.pitch + x, count);
          sums[row & 3] = fma_of<T, lanes>(g, value, sums[row & 3]);
        }
      }
      T* to = job.sums + (kx * job.kh + ky) * full_lanes<T>;
      store<T, lanes>(to, load<T, lanes>(to) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }
  }
}

template <typename T, int lanes>
void grad_weight_rows(const GradRows<T>& job) {
  if constexpr (sizeof(T) == 4) {
    const auto run = CVOPS_INLINED(auto taps, auto stride) {
      grad_weight_rows_of<T, lanes, taps, stride>(job);
    };
    if (job.tap_rows == 1 && if_common(job.kh, job.stride, run)) return;
  }
  grad_weight_rows_any<T, lanes>(job);
}

// sums [kw, kh, lanes] += gradient times source over one plane, strip by strip.
template <typename T, typename S>
void add_grad_weight(const WeightGradient& job, const StripLayout& at, const S* grad, const S* source, T* scratch,
    const int64_t* offsets, T* sums) {
  constexpr int lanes = full_lanes<T>;
  T* staged = scratch + at.target_offset;
  for (int64_t begin = 0; begin < job.grad_h; begin += at.strip_rows) {
    const int64_t rows = smaller(at.strip_rows, job.grad_h - begin);
    GradRows<T> part{};
    part.rows = rows, part.width = job.grad_w;
    if constexpr (std::is_same_v<S, T>) {
      part.grad = grad + begin * job.grad_w, part.grad_pitch = job.grad_w;
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        convert_row<T, false>(staged + r * at.columns, grad + (begin + r) * job.grad_w, job.grad_w);
      }
      part.grad = staged, part.grad_pitch = at.columns;
    }
    const int64_t source_rows = (rows - 1) * job.rows.stride + (job.kh - 1) * job.rows.tap_step + 1;
    pack_rows(source, job.source_h, job.source_w, begin * job.rows.stride + job.rows.base, source_rows,
        job.columns.stride, at, scratch);
    part.source = scratch, part.pitch = at.pitch, part.stride = job.rows.stride;
    part.tap_rows = job.rows.tap_step, part.columns = offsets, part.kh = job.kh, part.kw = job.kw;
    part.sums = sums;
    if (job.grad_w > lanes / 2)
      grad_weight_rows<T, lanes>(part);
    else
      grad_weight_rows<T, lanes / 2>(part);
  }
}

// sum [lanes] += a plane of the gradient; two sums hide the latency of the addition.
template <typename T, typename S>
void add_grad_bias(const S* grad, int64_t size, T* sum) {
  constexpr int lanes = full_lanes<T>;
  Vec<T, lanes> even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    even += load_as<T, lanes>(grad + i);
    odd += load_as<T, lanes>(grad + i + lanes);
  }
  for (; i < size; i += lanes) {
    if constexpr (std::is_same_v<S, T>) {
      even += load_first<T, lanes>(grad + i, size - i);
    } else {
      T rest[lanes] = {};
      convert_row<T, false>(rest, grad + i, smaller(size - i, lanes));
      even += load<T, lanes>(rest);
    }
  }
  store<T, lanes>(sum, load<T, lanes>(sum) + (even + odd));
}

// Input channels [first, last): grad_weight [groups * targets, kh, kw] and, if not null, grad_bias [groups * targets].
// Images are added in order. After the strip, `scratch` holds the rows of the gradient, then kh * kw + 1 vectors.
template <typename T, typename S>
void grad_weight_nchw(const WeightGradient& job, const StripLayout& at, const S* grad, const S* source, int64_t first,
    int64_t last, T* scratch, int64_t* offsets, T* grad_weight, T* grad_bias) {
  constexpr int lanes = full_lanes<T>;
  const int64_t taps = job.kh * job.kw, planes = job.groups * job.targets;
  const int64_t grad_size = job.grad_h * job.grad_w, source_size = job.source_h * job.source_w;
  T* sums = scratch + at.target_offset + at.strip_rows * at.columns;
  for (int64_t i = 0; i < at.size; ++i) scratch[i] = T(0);
  find_tap_columns(job.columns, job.columns.stride, at, offsets);
  const auto grad_plane = [&](int64_t image, int64_t channel) { return grad + (image * planes + channel) * grad_size; };
  const auto source_plane = [&](int64_t image, int64_t channel) {
    return source + (image * job.groups + channel / job.targets) * source_size;
  };
  const auto prefetch = [&](int64_t image, int64_t images, int64_t channel) {
    for (int64_t i = image; i < image + images; ++i) {
      prefetch_plane<false>(grad_plane(i, channel), grad_size);
      if (grad_weight != nullptr) prefetch_plane<false>(source_plane(i, channel), source_size);
    }
  };
  // Of one image, of two together.
  const DirectGradPlane direct[] = {
      find_direct_grad_plane<S>(job.rows, job.columns, false), find_direct_grad_plane<S>(job.rows, job.columns, true)};
  const bool in_twos = direct[1] != nullptr && go_in_twos(job.grad_w);
  for (int64_t channel = first * job.targets; channel < last * job.targets; ++channel) {
    for (int64_t i = 0; i < (taps + 1) * lanes; ++i) sums[i] = T(0);
    for (int64_t image = 0, images; image < job.n; image += images) {
      images = in_twos && image + 1 < job.n ? 2 : 1;
      const int64_t next = image + images, left = job.n - next;
      if (left > 0)
        prefetch(next, smaller(images, left), channel);
      else if (channel + 1 < last * job.targets)
        prefetch(0, images, channel + 1);
      for (int64_t i = image; grad_bias != nullptr && i < image + images; ++i) {
        add_grad_bias<T>(grad_plane(i, channel), grad_size, sums + taps * lanes);
      }
      if (grad_weight == nullptr) continue;
      if constexpr (std::is_same_v<S, float>) {
        if (direct[images - 1] != nullptr) {
          const SecondPlane second{job.groups * source_size, 0, planes * grad_size, 0.0f};
          const DirectJob whole{job.source_h, job.source_w, job.grad_h, job.grad_w, job.rows.base, job.columns.base, 0,
              0, source, job.n * job.groups * source_size, second};
          direct[images - 1](whole, grad_plane(image, channel), source_plane(image, channel), sums);
          continue;
        }
      }
      add_grad_weight<T>(job, at, grad_plane(image, channel), source_plane(image, channel), scratch, offsets, sums);
    }
    for (int64_t ky = 0; grad_weight != nullptr && ky < job.kh; ++ky) {
      for (int64_t kx = 0; kx < job.kw; ++kx) {
        const auto sum = load<T, lanes>(sums + (kx * job.kh + ky) * lanes);
        grad_weight[channel * taps + ky * job.kw + kx] = sum_lanes<T, lanes>(sum);
      }
    }
    if (grad_bias != nullptr) grad_bias[channel] = sum_lanes<T, lanes>(load<T, lanes>(sums + taps * lanes));
  }
}

#include "cpu/depthwise_conv2d_nhwc-inl.h"
