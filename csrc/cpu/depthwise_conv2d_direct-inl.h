// The common cases of depthwise_conv2d for NCHW float: square kernels of 3, 5 and 7, stride 1 and 2, no dilation, on
// instruction sets with masked loads. Included by cpu/depthwise_conv2d-inl.h, which does everything else.
//
// No copy of the source is made: lanes beyond the left and right edge are masked off, rows beyond the top and bottom
// are skipped. Stride 2 splits even and odd columns in registers. Blocks are 7 (or 4) rows by one vector; the last one
// of a row overlaps the one before it. Of planes that fill no more than half a vector, two are computed together, one
// in each half. The order of addition is that of the general path.

// Where the second of two planes lies, counted from the first; it may be the first once more.
struct SecondPlane {
  int64_t source, weight, target;
  float init;
};

struct DirectJob {
  int64_t source_h, source_w, target_h, target_w;
  int64_t base_y, base_x;  // source position of the first tap of target position 0
  int64_t weight_row, weight_column;
  const float* source;  // of all planes
  int64_t source_size;
  SecondPlane second;
};

#if defined(CVOPS_HAS_LANE_MASKS)

constexpr bool kManyRegisters = CVOPS_VECTOR_BYTES == 64;
constexpr bool kTwoPlanes = CVOPS_VECTOR_BYTES == 64;  // AVX2 would have room for planes of up to 4 columns only
constexpr int kHalf = full_lanes<float> / 2;

// Of two planes: a value of each, all over its half of a vector; the masked values of each; the first n back to each.
template <int lanes>
inline Vec<float, lanes> splat_both(float a, float b) {
  return (Vec<float, lanes>)_mm512_mask_broadcastss_ps(_mm512_set1_ps(a), 0xff00, _mm_set_ss(b));
}
template <int lanes>
inline Vec<float, lanes> load_both(const float* p, int64_t second, LaneMask<lanes / 2> mask) {
  const auto a = load_masked<lanes / 2>(p, mask), b = load_masked<lanes / 2>(p + second, mask);
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
template <int lanes>
inline void store_both(float* p, int64_t second, Vec<float, lanes> v, int64_t n) {
  store_first<float, lanes / 2>(p, __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), n);
  store_first<float, lanes / 2>(p + second, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), n);
}

template <int lanes, bool two>
inline Vec<float, lanes> splat_weight(const DirectJob& job, const float* weight) {
  if constexpr (two)
    return splat_both<lanes>(*weight, weight[job.second.weight]);
  else
    return splat<float, lanes>(*weight);
}

// Calls add(r, ky, row(q)) for all target rows r < R and taps ky < KH, where q = r * S + ky is the source row counted
// from y; rows outside of the source are left out.
template <int R, int KH, int S, typename Row, typename Add>
__attribute__((always_inline)) inline void over_rows(int64_t y, int64_t height, const Row& row, const Add& add) {
  unrolled<(R - 1) * S + KH>(CVOPS_INLINED(auto q) {
    if (static_cast<uint64_t>(y + q) >= static_cast<uint64_t>(height)) return;
    const auto value = row(q);
    unrolled<R>(CVOPS_INLINED(auto r) {
      constexpr int ky = q - r * S;
      if constexpr (ky >= 0 && ky < KH) add(r, std::integral_constant<int, ky>{}, value);
    });
  });
}

// Whether to read all of `span` columns from `at` of rows [first, first + rows) and clear lanes afterwards, as masked
// loads wait for one another's cache misses on AMD's processors. Where they lie in the source: in the plane, or in one
// beside it. Narrow planes are better off with the masks of AVX-512.
inline bool read_whole(
    const DirectJob& job, const float* plane, int64_t first, int64_t rows, int64_t at, int64_t span) {
  if (kManyRegisters && job.source_w <= full_lanes<float>) return false;
  const int64_t low = larger(first, 0), high = smaller(first + rows, job.source_h) - 1,
                column = plane - job.source + at;
  return column + low * job.source_w >= 0 && column + high * job.source_w + span <= job.source_size;
}

// `lanes` pairs of an even and an odd column: what stride 2 reads.
template <int lanes>
struct Pair {
  Vec<float, lanes> even, odd;
  Pair(Vec<float, lanes> a, Vec<float, lanes> b) : even(even_lanes<lanes>(a, b)), odd(odd_lanes<lanes>(a, b)) {}
};

// over_rows of the `lanes` source columns (stride 1) or pairs of them (stride 2) from `at`, of which `count` are
// wanted; of two planes, half as many of each.
template <int lanes, bool two, int R, int KH, int S, typename Add>
__attribute__((always_inline)) inline void over_columns(
    const DirectJob& job, const float* plane, int64_t first, int64_t at, int64_t count, const Add& add) {
  const int64_t width = job.source_w, end = smaller(width - at, S * count);
  const float* from = plane + first * width + at;
  // Of a row that starts at p, read(p, i) is the i-th of its S vectors.
  const auto over = CVOPS_INLINED(const auto& read) {
    const auto row = CVOPS_INLINED(auto q) {
      const float* p = from + q * width;
      if constexpr (S == 1)
        return read(p, 0);
      else
        return Pair<lanes>(read(p, 0), read(p, 1));
    };
    over_rows<R, KH, S>(first, job.source_h, row, add);
  };
  if constexpr (two) {
    const auto mask = lanes_between<S * kHalf>(-at, end);
    over(CVOPS_INLINED(const float* p, int i) {
      if constexpr (S == 1)
        return load_both<lanes>(p, job.second.source, mask);
      else
        return load_masked<lanes>(p + i * job.second.source, mask);
    });
  } else {
    if constexpr (!kManyRegisters) {
      const auto whole = CVOPS_INLINED(const float* p, int i) {
        return load<float, lanes>(p + i * lanes);
      };
      if (at >= 0 && end >= S * lanes) return over(whole);
    }
    const LaneMask<lanes> mask[] = {lanes_between<lanes>(-at, end), lanes_between<lanes>(-at - lanes, end - lanes)};
    const auto cleared = CVOPS_INLINED(const float* p, int i) {
      return keep_lanes<lanes>(load<float, lanes>(p + i * lanes), mask[i]);
    };
    const auto masked = CVOPS_INLINED(const float* p, int i) {
      return load_masked<lanes>(p + i * lanes, mask[i]);
    };
    if (read_whole(job, plane, first, (R - 1) * S + KH, at, S * lanes))
      over(cleared);
    else
      over(masked);
  }
}

template <bool two, int R, int KH, int KW, int S>
inline void direct_block(
    const DirectJob& job, const float* source, const float* weight, float init, int64_t y, int64_t x, float* target) {
  constexpr int lanes = full_lanes<float>;
  typedef Vec<float, lanes> V;
  const auto scale_of = CVOPS_INLINED(const float* w) {
    return splat_weight<lanes, two>(job, w);
  };
  V sum[R];
  unrolled<R>(CVOPS_INLINED(auto r) {
    if constexpr (two)
      sum[r] = splat_both<lanes>(init, job.second.init);
    else
      sum[r] = splat<float, lanes>(init);
  });
  const int64_t first = y * S + job.base_y, at = x * S + job.base_x, count = job.target_w - x;
  if constexpr (S == 1) {
    for (int kx = 0; kx < KW; ++kx) {
      V scale[KH];
      const float* w = weight + kx * job.weight_column;
      unrolled<KH>(CVOPS_INLINED(auto ky) { scale[ky] = scale_of(w + ky * job.weight_row); });
      over_columns<lanes, two, R, KH, 1>(
          job, source, first, at + kx, lanes,
          CVOPS_INLINED(auto r, auto ky, V value) { sum[r] = fma_of<float, lanes>(scale[ky], value, sum[r]); });
    }
  } else {
    // Taps in pairs of an even and an odd source column; either may be missing at the ends.
    for (int kx = (job.base_x & 1) ? -1 : 0; kx < KW; kx += 2) {
      V even[KH], odd[KH];
      const float* w = weight + kx * job.weight_column;
      if (kx >= 0 && kx + 1 < KW) {
        unrolled<KH>(CVOPS_INLINED(auto ky) {
          even[ky] = scale_of(w + ky * job.weight_row);
          odd[ky] = scale_of(w + ky * job.weight_row + job.weight_column);
        });
        over_columns<lanes, two, R, KH, 2>(
            job, source, first, at + kx, lanes, CVOPS_INLINED(auto r, auto ky, const Pair<lanes>& value) {
              sum[r] = fma_of<float, lanes>(even[ky], value.even, sum[r]);
              sum[r] = fma_of<float, lanes>(odd[ky], value.odd, sum[r]);
            });
      } else {
        const bool second = kx < 0;
        unrolled<KH>(CVOPS_INLINED(
            auto ky) { even[ky] = scale_of(w + ky * job.weight_row + (second ? job.weight_column : 0)); });
        over_columns<lanes, two, R, KH, 2>(
            job, source, first, at + kx, lanes, CVOPS_INLINED(auto r, auto ky, const Pair<lanes>& value) {
              sum[r] = fma_of<float, lanes>(even[ky], second ? value.odd : value.even, sum[r]);
            });
      }
    }
  }
  unrolled<R>(CVOPS_INLINED(auto r) {
    float* to = target + (y + r) * job.target_w + x;
    if constexpr (two)
      store_both<lanes>(to, job.second.target, sum[r], count);
    else
      store_first<float, lanes>(to, sum[r], count);
  });
}

template <bool two, int R, int KH, int KW, int S>
inline void direct_rows(
    const DirectJob& job, const float* source, const float* weight, float init, int64_t y, float* target) {
  constexpr int lanes = full_lanes<float>;
  if constexpr (two) return direct_block<true, R, KH, KW, S>(job, source, weight, init, y, 0, target);
  for (int64_t x = 0; x < job.target_w; x += lanes) {
    if (job.target_w >= lanes) x = smaller(x, job.target_w - lanes);
    direct_block<false, R, KH, KW, S>(job, source, weight, init, y, x, target);
  }
}

// Target rows [begin, end) of one plane; the last block may overlap the one before it.
template <bool two, int KH, int KW, int S>
void direct_plane(const DirectJob& job, const float* source, const float* weight, float init, int64_t begin,
    int64_t end, float* target) {
  for (int64_t y = begin; y < end;) {
    if (end - y > kRestRows && end - begin >= kBlockRows) {
      y = smaller(y, end - kBlockRows);
      direct_rows<two, kBlockRows, KH, KW, S>(job, source, weight, init, y, target);
      y += kBlockRows;
    } else if (end - begin >= kRestRows) {
      y = smaller(y, end - kRestRows);
      direct_rows<two, kRestRows, KH, KW, S>(job, source, weight, init, y, target);
      y += kRestRows;
    } else {
      direct_rows<two, 1, KH, KW, S>(job, source, weight, init, y, target);
      ++y;
    }
  }
}

// The gradient of the input of a convolution of stride 2, at the rows of one phase (KH taps): columns of both phases,
// A taps from base_a and B taps from base_a + D, are accumulated side by side and stored alternating.
template <bool two, int R, int KH, int A, int B, int D>
inline void spread_block(const DirectJob& job, const float* source, const float* weight_a, const float* weight_b,
    int64_t j, int64_t x, float* target, int64_t target_pitch) {
  constexpr int lanes = full_lanes<float>;
  typedef Vec<float, lanes> V;
  const auto scale_of = CVOPS_INLINED(const float* w) {
    return splat_weight<lanes, two>(job, w);
  };
  V a[R] = {}, b[R] = {};
  constexpr int columns = A > D + B ? A : D + B;
  unrolled<columns>(CVOPS_INLINED(auto d) {
    V scale_a[KH], scale_b[KH];
    unrolled<KH>(CVOPS_INLINED(auto ky) {
      if constexpr (d < A) scale_a[ky] = scale_of(weight_a + ky * job.weight_row + d * job.weight_column);
      if constexpr (d >= D && d < D + B)
        scale_b[ky] = scale_of(weight_b + ky * job.weight_row + (d - D) * job.weight_column);
    });
    over_columns<lanes, two, R, KH, 1>(
        job, source, j + job.base_y, x + job.base_x + d, lanes, CVOPS_INLINED(auto r, auto ky, V value) {
          if constexpr (d < A) a[r] = fma_of<float, lanes>(scale_a[ky], value, a[r]);
          if constexpr (d >= D && d < D + B) b[r] = fma_of<float, lanes>(scale_b[ky], value, b[r]);
        });
  });
  const int64_t count = job.target_w - 2 * x;
  unrolled<R>(CVOPS_INLINED(auto r) {
    float *to = target + r * target_pitch + 2 * x, *rest = to + (two ? job.second.target : lanes);
    const int64_t left = two ? count : count - lanes;
    store_first<float, lanes>(to, interleaved_low<lanes>(a[r], b[r]), count);
    if (left > 0) store_first<float, lanes>(rest, interleaved_high<lanes>(a[r], b[r]), left);
  });
}

// All rows of one phase: target row first + 2 * j for j < count.
template <bool two, int KH, int A, int B, int D>
void spread_plane(const DirectJob& job, const float* source, const float* weight_a, const float* weight_b,
    int64_t count, float* target) {
  constexpr int lanes = full_lanes<float>;
  const int64_t pitch = 2 * job.target_w, width = (job.target_w + 1) / 2;
  for (int64_t j = 0; j < count;) {
    const bool block = count - j > kRestRows && count >= kBlockRows;
    const int64_t rows = block ? kBlockRows : count >= kRestRows ? kRestRows : 1;
    j = smaller(j, count - rows);
    float* to = target + j * pitch;
    for (int64_t x = 0; x < width; x += lanes) {
      if (width >= lanes) x = smaller(x, width - lanes);
      if (block)
        spread_block<two, kBlockRows, KH, A, B, D>(job, source, weight_a, weight_b, j, x, to, pitch);
      else if (rows == kRestRows)
        spread_block<two, kRestRows, KH, A, B, D>(job, source, weight_a, weight_b, j, x, to, pitch);
      else
        spread_block<two, 1, KH, A, B, D>(job, source, weight_a, weight_b, j, x, to, pitch);
    }
    j += rows;
  }
}

// sums [KW, KH] += gradient times source over one plane, K tap columns at once; they are adjacent for stride 1, an even
// and an odd one (or, K = 1, one of them) for stride 2.
template <bool two, int R, int KH, int S, int K>
__attribute__((always_inline)) inline void direct_grad_block(const DirectJob& job, const float* grad,
    const float* source, int kx, int64_t y, int64_t x, Vec<float, full_lanes<float>> (&sums)[K][KH]) {
  constexpr int lanes = full_lanes<float>;
  typedef Vec<float, lanes> V;
  const int64_t first = y * S + job.base_y, at = x * S + job.base_x + kx, count = job.target_w - x;
  V g[R];
  unrolled<R>(CVOPS_INLINED(auto r) {
    const float* from = grad + (y + r) * job.target_w + x;
    if constexpr (two)
      g[r] = load_both<lanes>(from, job.second.target, lanes_between<kHalf>(0, count));
    else
      g[r] = load_first<float, lanes>(from, count);
  });
  if constexpr (S == 1) {
    unrolled<K>(CVOPS_INLINED(auto k) {
      over_columns<lanes, two, R, KH, 1>(
          job, source, first, at + k, count,
          CVOPS_INLINED(auto r, auto ky, V value) { sums[k][ky] = fma_of<float, lanes>(g[r], value, sums[k][ky]); });
    });
  } else {
    const bool second = K == 1 && ((job.base_x + kx) & 1);
    over_columns<lanes, two, R, KH, 2>(
        job, source, first, at - second, count, CVOPS_INLINED(auto r, auto ky, const Pair<lanes>& value) {
          const V one = second ? value.odd : value.even;
          sums[0][ky] = fma_of<float, lanes>(g[r], one, sums[0][ky]);
          if constexpr (K == 2) sums[1][ky] = fma_of<float, lanes>(g[r], value.odd, sums[1][ky]);
        });
  }
}

template <bool two, int KH, int S, int K>
void direct_grad_columns(const DirectJob& job, const float* grad, const float* source, int kx, float* sums) {
  constexpr int lanes = full_lanes<float>;
  constexpr int R = CVOPS_VECTOR_BYTES == 64 ? kBlockRows : kRestRows;  // 16 registers hold fewer rows
  typedef Vec<float, lanes> V;
  V sum[K][KH] = {};
  int64_t y = 0;
  for (; y + R <= job.target_h; y += R) {
    for (int64_t x = 0; x < job.target_w; x += lanes) {
      direct_grad_block<two, R, KH, S, K>(job, grad, source, kx, y, x, sum);
    }
  }
  for (; y < job.target_h; ++y) {
    for (int64_t x = 0; x < job.target_w; x += lanes) {
      direct_grad_block<two, 1, KH, S, K>(job, grad, source, kx, y, x, sum);
    }
  }
  unrolled<K>(CVOPS_INLINED(auto k) {
    unrolled<KH>(CVOPS_INLINED(auto ky) {
      float* to = sums + ((kx + k) * KH + ky) * lanes;
      store<float, lanes>(to, load<float, lanes>(to) + sum[k][ky]);
    });
  });
}

template <bool two, int KH, int S>
void direct_grad_plane(const DirectJob& job, const float* grad, const float* source, float* sums) {
  constexpr int group = S == 2 || KH == 7 ? 2 : 3;
  int kx = 0;
  if (S == 2 && (job.base_x & 1)) direct_grad_columns<two, KH, S, 1>(job, grad, source, kx++, sums);
  for (; kx + group <= KH; kx += group) direct_grad_columns<two, KH, S, group>(job, grad, source, kx, sums);
  if constexpr (group == 3 && KH % 3 == 2) direct_grad_columns<two, KH, S, 2>(job, grad, source, kx, sums), kx += 2;
  for (; kx < KH; ++kx) direct_grad_columns<two, KH, S, 1>(job, grad, source, kx, sums);
}

#endif

typedef void (*DirectPlane)(const DirectJob&, const float*, const float*, float, int64_t, int64_t, float*);
typedef void (*SpreadPlane)(const DirectJob&, const float*, const float*, const float*, int64_t, float*);
typedef void (*DirectGradPlane)(const DirectJob&, const float*, const float*, float*);

// Square, not dilated, and the same stride both ways.
inline bool is_plain(const AxisPhase& rows, const AxisPhase& columns) {
  return rows.taps == columns.taps && rows.stride == columns.stride && rows.tap_step == 1 && columns.tap_step == 1;
}

// Whether two planes of a target with so many columns (of one phase) are computed together.
inline bool go_in_twos([[maybe_unused]] int64_t columns) {
#if defined(CVOPS_HAS_LANE_MASKS)
  return kTwoPlanes && columns <= kHalf;
#else
  return false;
#endif
}

// The specialisation for a case, or null if the general path has to do it.
inline DirectPlane find_direct_plane(
    [[maybe_unused]] const AxisPhase& rows, [[maybe_unused]] const AxisPhase& columns, [[maybe_unused]] bool two) {
  DirectPlane found = nullptr;
#if defined(CVOPS_HAS_LANE_MASKS)
  const auto take = CVOPS_INLINED(auto taps, auto stride) {
    found = two ? direct_plane<kTwoPlanes, taps, taps, stride> : direct_plane<false, taps, taps, stride>;
  };
  if (is_plain(rows, columns)) if_common(rows.taps, rows.stride, take);
#endif
  return found;
}

inline SpreadPlane find_spread_plane([[maybe_unused]] const AxisPhase& rows, [[maybe_unused]] const AxisPhase& a,
    [[maybe_unused]] const AxisPhase& b, [[maybe_unused]] bool two) {
#if defined(CVOPS_HAS_LANE_MASKS)
  if (rows.tap_step != 1 || a.tap_step != 1 || b.tap_step != 1) return nullptr;
#define CVOPS_SPREAD(K, A, B, D)                                            \
  if (rows.taps == K && a.taps == A && b.taps == B && b.base - a.base == D) \
  return two ? spread_plane<kTwoPlanes, K, A, B, D> : spread_plane<false, K, A, B, D>
  CVOPS_SPREAD(1, 1, 2, 0);
  CVOPS_SPREAD(2, 1, 2, 0);
  CVOPS_SPREAD(1, 2, 1, 1);
  CVOPS_SPREAD(2, 2, 1, 1);
  CVOPS_SPREAD(2, 3, 2, 1);
  CVOPS_SPREAD(3, 3, 2, 1);
  CVOPS_SPREAD(2, 2, 3, 0);
  CVOPS_SPREAD(3, 2, 3, 0);
  CVOPS_SPREAD(3, 3, 4, 0);
  CVOPS_SPREAD(4, 3, 4, 0);
  CVOPS_SPREAD(3, 4, 3, 1);
  CVOPS_SPREAD(4, 4, 3, 1);
#undef CVOPS_SPREAD
#endif
  return nullptr;
}

// S: the type of the planes; only float has this path.
template <typename S>
DirectGradPlane find_direct_grad_plane(
    [[maybe_unused]] const AxisPhase& rows, [[maybe_unused]] const AxisPhase& columns, [[maybe_unused]] bool two) {
  DirectGradPlane found = nullptr;
#if defined(CVOPS_HAS_LANE_MASKS)
  const auto take = CVOPS_INLINED(auto taps, auto stride) {
    found = two ? direct_grad_plane<kTwoPlanes, taps, stride> : direct_grad_plane<false, taps, stride>;
  };
  if (std::is_same_v<S, float> && is_plain(rows, columns)) if_common(rows.taps, rows.stride, take);
#endif
  return found;
}

// Elements of a source that the processor does not fetch in time by itself. AVX2 masks loads at the edges only, and
// gains nothing.
constexpr int64_t kSmallPlane = CVOPS_VECTOR_BYTES == 64 ? 512 : 0;

// Items [first, last) of n * groups * strips, as correlate_nchw; false if this is not a common case.
inline bool correlate_direct(const Correlation<float>& job, const StripLayout& at, const float* source, float* target,
    int64_t first, int64_t last) {
  if (job.sources > 1 || job.row_phases > 2 || job.row_phases != job.column_phases) return false;
  const bool spread = job.row_phases == 2, two = at.strips == 1 && go_in_twos(job.columns[0].count);
  const AxisPhase &rows = job.rows[0], &columns = job.columns[0], &right = job.columns[job.column_phases - 1];
  const DirectPlane run = spread ? nullptr : find_direct_plane(rows, columns, two);
  SpreadPlane run_phase[2] = {};
  for (int p = 0; spread && p < 2; ++p) run_phase[p] = find_spread_plane(job.rows[p], columns, right, two);
  if (spread ? run_phase[0] == nullptr || run_phase[1] == nullptr : run == nullptr) return false;

  const int64_t from = job.source_h * job.source_w, to = job.target_h * job.target_w, taps = job.kh * job.kw;
  DirectJob direct{job.source_h, job.source_w, job.target_h, job.target_w, rows.base, columns.base,
      rows.weight_step * job.kw, columns.weight_step, source, job.n * job.groups * from, {}};
  const int64_t step = two ? 2 : 1;
  for (int64_t item = first; item < last; item += step) {
    const int64_t image_group = item / at.strips, group = image_group % job.groups;
    const bool pair = two && item + 1 < last;  // the last one is its own second plane
    const int64_t other = !pair ? 0 : group + 1 < job.groups ? 1 : 1 - job.groups;  // steps to the other's group
    const float* plane = source + image_group * from;
    if (from <= kSmallPlane && at.strips == 1 && item + step < last) {
      const int64_t next = smaller(step, last - item - step);
      prefetch_plane<false>(plane + step * from, next * from);
      prefetch_plane<true>(target + (item + step) * job.targets * to, next * job.targets * to);
    }
    direct.second = {pair ? from : 0, other * job.targets * taps, pair ? job.targets * to : 0, 0.0f};
    if (spread) {
      if (item % at.strips != 0) continue;  // planes are not cut here
      for (int p = 0; p < 2; ++p) {
        const AxisPhase& phase = job.rows[p];
        direct.base_y = phase.base;
        const float* weight = job.weight + group * taps + phase.weight_first * job.kw;
        run_phase[p](direct, plane, weight + columns.weight_first, weight + right.weight_first, phase.count,
            target + image_group * to + phase.first * job.target_w);
      }
      continue;
    }
    const int64_t end = smaller((item % at.strips + 1) * at.strip_rows, job.target_h);
    const int64_t begin = item % at.strips * at.strip_rows;
    for (int64_t k = 0; k < job.targets; ++k) {
      const int64_t channel = group * job.targets + k;
      float* out = target + (image_group * job.targets + k) * to;
      const float* weight = job.weight + channel * taps + rows.weight_first * job.kw + columns.weight_first;
      direct.second.init = job.bias ? job.bias[channel + other * job.targets] : 0.0f;
      run(direct, plane, weight, job.bias ? job.bias[channel] : 0.0f, begin, end, out);
      if (job.activation == kNoActivation) continue;
      const int64_t size = (end - begin) * job.target_w;
      activate_row(out + begin * job.target_w, size, job.activation);
      if (pair) activate_row(out + direct.second.target, size, job.activation);
    }
  }
  return true;
}
