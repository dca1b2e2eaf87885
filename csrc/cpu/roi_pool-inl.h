// Loop bodies of roi_pool, compiled once per instruction set (cpu/foreach_isa.h): the largest value of each bin and
// where it is, vectors along the channels. Layouts as in cpu/roi_align-inl.h. NaN is never the largest; a bin without
// a number holds 0 and index -1.

#include "cpu/roi_window-inl.h"

// One vector of channels of every bin. rows[i] is the row of the map that tap i of the vertical axis reads, and w the
// width of the map.
template <typename T, int lanes, typename S>
void largest_of_bins_block(const S* map, int64_t row, int64_t pixel, const AxisTaps<T>& y, const AxisTaps<T>& x,
    const RoiTap<T>* rows, int64_t w, S* out, int32_t* argmax, int64_t pitch) {
  typedef Vec<T, lanes> V;
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> I;
  typedef Vec<I, lanes> VI;
  const V nan = splat<T, lanes>(static_cast<T>(__builtin_nan("")));
  for (int64_t p = 0; p < y.bins; ++p) {
    for (int64_t q = 0; q < x.bins; ++q, out += pitch, argmax += pitch) {
      V best = nan;
      VI at = VI{} - 1;
      for (int32_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
        const S* line = map + y.taps[i].at * row;
        const I index = static_cast<I>(rows[i].at * w);
        for (int32_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
          const V value = load_as<T, lanes>(line + x.taps[j].at * pixel);
          const VI larger = ~(value <= best) & (value == value);
          best = larger ? value : best;
          at = larger ? VI{} + (index + x.taps[j].at) : at;
        }
      }
      store_as<T, lanes>(out, at < 0 ? V{} : best);
      store<int32_t, lanes>(argmax, __builtin_convertvector(at, Vec<int32_t, lanes>));
    }
  }
}

template <typename T, typename S>
void largest_of_bins(const S* map, int64_t row, int64_t pixel, int64_t channels, AxisTaps<T> y, AxisTaps<T> x,
    const RoiTap<T>* rows, int64_t w, S* out, int32_t* argmax, int64_t pitch) {
  constexpr int lanes = full_lanes<T>;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    largest_of_bins_block<T, lanes>(map + c, row, pixel, y, x, rows, w, out + c, argmax + c, pitch);
  }
  for (; c < channels; ++c) {
    largest_of_bins_block<T, 1>(map + c, row, pixel, y, x, rows, w, out + c, argmax + c, pitch);
  }
}

// The same from a window of 16 channels to planes, through a tile of [bins][16] values and one of indices.
template <typename T, typename S>
void largest_of_window(const T* window, int64_t row, int64_t channels, AxisTaps<T> y, AxisTaps<T> x,
    const RoiTap<T>* rows, int64_t w, T* tile, int32_t* index_tile, S* out, int32_t* argmax) {
  constexpr int lanes = full_lanes<T>;
  unrolled<16 / lanes>(CVOPS_INLINED(auto i) {
    constexpr int c = i * lanes;
    largest_of_bins_block<T, lanes>(window + c, row, 16, y, x, rows, w, tile + c, index_tile + c, 16);
  });
  const int64_t bins = y.bins * x.bins;
  unpack_window<false>(static_cast<const T*>(tile), channels, bins, out, bins);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < bins; ++i) argmax[c * bins + i] = index_tile[i * 16 + c];
  }
}

// Adds the gradient of one RoI to rows [first, last) of a window of a map of width w; 16 channels or fewer.
template <typename T, typename S>
void spread_to_largest(const S* grad, const int32_t* argmax, int64_t bins, int64_t bin, int64_t channel,
    int64_t channels, int64_t first, int64_t last, int64_t w, T* window) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < bins; ++i) {
      const int64_t at = argmax[i * bin + c * channel];
      if (at < first * w || at >= last * w) continue;
      window[(at - first * w) * 16 + c] += load_one<T>(grad + i * bin + c * channel);
    }
  }
}
