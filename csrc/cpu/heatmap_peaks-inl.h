// Loop bodies of heatmap_peaks, compiled once per instruction set (cpu/foreach_isa.h). Comparisons only: the same
// result on every instruction set.

#include "cpu/vec-inl.h"

// Bit i: v[i] > limit. False for NaN.
template <typename T, int lanes>
uint64_t lanes_above(Vec<T, lanes> v, Vec<T, lanes> limit) {
#if CVOPS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask((__m512)v, (__m512)limit, _CMP_GT_OQ);
  else
    return _mm512_cmp_pd_mask((__m512d)v, (__m512d)limit, _CMP_GT_OQ);
#elif CVOPS_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)limit, _CMP_GT_OQ)));
  else
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, (__m256d)limit, _CMP_GT_OQ)));
#else
  uint64_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= static_cast<uint64_t>(v[i] > limit[i]) << i;
  return bits;
#endif
}

// Of the lanes in `bits`, those of row[x, x + lanes) that are peaks.
template <typename T, typename S>
uint64_t peaks_among(uint64_t bits, const S* plane, const PeakWindow& w, int64_t y, int64_t x) {
  constexpr int lanes = full_lanes<T>;
  const S* row = plane + y * w.width + x;
  if (x < w.radius || x + lanes + w.radius > w.width) {
    for (uint64_t left = bits; left != 0; left &= left - 1) {
      const int lane = __builtin_ctzll(left);
      if (!is_peak(plane, w, y, x + lane, static_cast<T>(row[lane]))) bits &= ~(uint64_t{1} << lane);
    }
    return bits;
  }
  const auto values = load_as<T, lanes>(row);
  const int64_t top = y < w.radius ? -y : -w.radius;
  const int64_t bottom = w.height - 1 - y < w.radius ? w.height - 1 - y : w.radius;
  for (int64_t dy = top; dy <= bottom; ++dy) {
    for (int64_t dx = -w.radius; dx <= w.radius; ++dx) {
      bits &= ~lanes_above<T, lanes>(load_as<T, lanes>(row + dy * w.width + dx), values);
    }
    if (bits == 0) break;
  }
  return bits;
}

// Puts the peaks among the lanes in `bits` into the buffer; false, with the place to go on from, when it is full.
template <typename T, typename S>
bool take_peaks(
    uint64_t bits, const S* image, const S* plane, const PeakWindow& w, int64_t y, int64_t x, PeakScan<T>* scan) {
  const S* row = plane + y * w.width + x;
  for (bits = peaks_among<T>(bits, plane, w, y, x); bits != 0; bits &= bits - 1) {
    const int lane = __builtin_ctzll(bits);
    scan->found[scan->count++] = {static_cast<T>(row[lane]), row + lane - image};
    if (scan->count == scan->capacity) {
      scan->next = row + lane + 1 - image;
      return false;
    }
  }
  return true;
}

// Goes on with a scan until the end of its range or until its buffer is full. Indices ascend, so that an element must
// be larger than the k-th best so far: one that is equal ranks below it.
template <typename T, typename S>
void scan_peaks(const S* image, const PeakWindow& w, PeakScan<T>* scan) {
  constexpr int lanes = full_lanes<T>, vectors = 4, group = vectors * lanes;
  const auto limit = splat<T, lanes>(scan->limit);
  int64_t x = scan->next % w.width, y = scan->next / w.width % w.height;
  const S* plane = image + scan->next - y * w.width - x;
  for (int64_t i = scan->next; i < scan->last;) {
    const S* row = plane + y * w.width;
    const int64_t count = smaller(w.width - x, scan->last - i), end = x + count;
    for (; x + group <= end; x += group) {
      uint64_t above[vectors], any = 0;
      for (int v = 0; v < vectors; ++v) {
        above[v] = lanes_above<T, lanes>(load_as<T, lanes>(row + x + v * lanes), limit);
        any |= above[v];
      }
      if (any == 0) continue;
      for (int v = 0; v < vectors; ++v) {
        if (above[v] != 0 && !take_peaks(above[v], image, plane, w, y, x + v * lanes, scan)) return;
      }
    }
    for (; x < end; x += lanes) {
      uint64_t above = 0;
      if (x + lanes <= end) {
        above = lanes_above<T, lanes>(load_as<T, lanes>(row + x), limit);
      } else {
        for (int l = 0; l < end - x; ++l) above |= static_cast<uint64_t>(static_cast<T>(row[x + l]) > scan->limit) << l;
      }
      if (above != 0 && !take_peaks(above, image, plane, w, y, x, scan)) return;
    }
    i += count;
    x = 0;
    if (++y == w.height) y = 0, plane += w.height * w.width;
  }
  scan->next = scan->last;
}
