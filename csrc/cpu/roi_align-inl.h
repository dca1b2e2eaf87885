// Loop bodies of roi_align, compiled once per instruction set (cpu/foreach_isa.h): weighted averages of the pixels of
// each bin, vectors along the channels, and their transpose. A row of taps is summed first, then the rows; the order is
// fixed. Pixels lie `pixel` elements apart and rows `row`, which makes a channels_last map and a window
// (cpu/roi_window-inl.h) the same.

#include "cpu/roi_window-inl.h"

// U vectors of channels of every bin.
template <typename T, int lanes, int U, typename S, typename Out>
void average_bins_block(
    const S* map, int64_t row, int64_t pixel, const AxisTaps<T>& y, const AxisTaps<T>& x, Out* out, int64_t pitch) {
  typedef Vec<T, lanes> V;
  constexpr int64_t line_elements = 64 / sizeof(S);
  for (int64_t p = 0; p < y.bins; ++p) {
    // The hardware does not foresee the rows of the next bins.
    for (int32_t i = y.begin[p + 1]; p + 1 < y.bins && i < y.begin[p + 2]; ++i) {
      const S* line = map + y.taps[i].at * row;
      for (int32_t j = 0; j < x.begin[x.bins]; ++j) {
        const S* from = line + x.taps[j].at * pixel;
        unrolled<(U * lanes + line_elements - 1) / line_elements>(
            CVOPS_INLINED(auto u) { __builtin_prefetch(from + u * line_elements); });
      }
    }
    for (int64_t q = 0; q < x.bins; ++q, out += pitch) {
      V sum[U];
      unrolled<U>(CVOPS_INLINED(auto u) { sum[u] = V{}; });
      for (int32_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
        const S* line = map + y.taps[i].at * row;
        V across[U];
        unrolled<U>(CVOPS_INLINED(auto u) { across[u] = V{}; });
        for (int32_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
          const S* from = line + x.taps[j].at * pixel;
          const V weight = splat<T, lanes>(x.taps[j].weight);
          unrolled<U>(CVOPS_INLINED(
              auto u) { across[u] = fma_of<T, lanes>(weight, load_as<T, lanes>(from + u * lanes), across[u]); });
        }
        const V weight = splat<T, lanes>(y.taps[i].weight);
        unrolled<U>(CVOPS_INLINED(auto u) { sum[u] = fma_of<T, lanes>(weight, across[u], sum[u]); });
      }
      unrolled<U>(CVOPS_INLINED(auto u) { store_as<T, lanes>(out + u * lanes, sum[u]); });
    }
  }
}

// Channels [0, channels) of every bin, out[bins][pitch], from a map with the channels inside.
template <typename T, typename S, typename Out>
void average_bins(
    const S* map, int64_t row, int64_t pixel, int64_t channels, AxisTaps<T> y, AxisTaps<T> x, Out* out, int64_t pitch) {
  constexpr int lanes = full_lanes<T>;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) {
    average_bins_block<T, lanes, 4>(map + c, row, pixel, y, x, out + c, pitch);
  }
  for (; c + lanes <= channels; c += lanes) {
    average_bins_block<T, lanes, 1>(map + c, row, pixel, y, x, out + c, pitch);
  }
  for (; c < channels; ++c) {
    for (int64_t p = 0; p < y.bins; ++p) {
      for (int64_t q = 0; q < x.bins; ++q) {
        T sum = 0;
        for (int32_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
          T across = 0;
          for (int32_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
            across += x.taps[j].weight * load_one<T>(map + y.taps[i].at * row + x.taps[j].at * pixel + c);
          }
          sum += y.taps[i].weight * across;
        }
        store_one<false>(out + (p * x.bins + q) * pitch + c, sum);
      }
    }
  }
}

// The same from a window of 16 channels to planes: out[channels][bins], through tile[bins][16].
template <typename T, typename S>
void average_window(const T* window, int64_t row, int64_t channels, AxisTaps<T> y, AxisTaps<T> x, T* tile, S* out) {
  constexpr int lanes = full_lanes<T>;
  average_bins_block<T, lanes, 16 / lanes>(window, row, 16, y, x, tile, 16);
  const int64_t bins = y.bins * x.bins;
  unpack_window<false>(static_cast<const T*>(tile), channels, bins, out, bins);
}

// Adds the gradient of one RoI to rows [first, last) of a window of a map. Grad is that of 16 channels (or fewer):
// bins `bin` elements apart, channels `channel`; `tile` holds a row of bins.
template <typename T, typename S>
void spread_bins(const S* grad, int64_t bin, int64_t channel, int64_t channels, AxisTaps<T> y, AxisTaps<T> x,
    int64_t first, int64_t last, T* window, int64_t row, T* tile) {
  constexpr int lanes = full_lanes<T>, U = 16 / lanes;
  typedef Vec<T, lanes> V;
  for (int64_t p = 0; p < y.bins; ++p) {
    bool loaded = false;
    for (int32_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
      if (y.taps[i].at < first || y.taps[i].at >= last) continue;
      if (!loaded) {
        for (int64_t q = 0; q < x.bins; ++q) {
          const S* from = grad + (p * x.bins + q) * bin;
          if (channel == 1 && channels == 16) {
            unrolled<U>(CVOPS_INLINED(
                auto u) { store<T, lanes>(tile + q * 16 + u * lanes, load_as<T, lanes>(from + u * lanes)); });
            continue;
          }
          for (int64_t c = 0; c < 16; ++c) tile[q * 16 + c] = c < channels ? load_one<T>(from + c * channel) : T(0);
        }
        loaded = true;
      }
      T* line = window + (y.taps[i].at - first) * row;
      const V vertical = splat<T, lanes>(y.taps[i].weight);
      for (int64_t q = 0; q < x.bins; ++q) {
        V g[U];
        unrolled<U>(CVOPS_INLINED(auto u) { g[u] = vertical * load<T, lanes>(tile + q * 16 + u * lanes); });
        for (int32_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
          T* to = line + x.taps[j].at * 16;
          const V weight = splat<T, lanes>(x.taps[j].weight);
          unrolled<U>(CVOPS_INLINED(auto u) {
            store<T, lanes>(to + u * lanes, fma_of<T, lanes>(weight, g[u], load<T, lanes>(to + u * lanes)));
          });
        }
      }
    }
  }
}
