// Loop bodies of ps_roi_align and ps_roi_pool, compiled once per instruction set (cpu/foreach_isa.h): the weighted
// average of the pixels of one bin in one channel, and its transpose.

#include "cpu/roi_window-inl.h"

// One channel of one map; pixels lie `pixel` elements apart, rows `row`.
template <typename T, typename S>
inline T average_of_bin(
    const S* plane, int64_t row, int64_t pixel, const AxisTaps<T>& y, int64_t p, const AxisTaps<T>& x, int64_t q) {
  T sum = 0;
  for (int32_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
    const S* line = plane + y.taps[i].at * row;
    T across = 0;
    for (int32_t j = x.begin[q]; j < x.begin[q + 1]; ++j) {
      across += x.taps[j].weight * load_one<T>(line + x.taps[j].at * pixel);
    }
    sum += y.taps[i].weight * across;
  }
  return sum;
}

// Bin (p, q) of output channels [0, channels), whose planes lie `plane` elements apart and whose results `pitch`.
template <typename T, typename S>
void average_positions(const S* map, int64_t row, int64_t pixel, int64_t plane, int64_t channels, AxisTaps<T> y,
    int64_t p, AxisTaps<T> x, int64_t q, S* out, int64_t pitch) {
  for (int64_t c = 0; c < channels; ++c) {
    store_one<false>(out + c * pitch, average_of_bin(map + c * plane, row, pixel, y, p, x, q));
  }
}

// Adds a gradient to bin (p, q) of channel `c` of rows [first, last) of a window of 16 channels.
template <typename T, typename S>
void spread_position(const S* grad, AxisTaps<T> y, int64_t p, AxisTaps<T> x, int64_t q, int64_t first, int64_t last,
    T* window, int64_t row) {
  const T value = load_one<T>(grad);
  for (int32_t i = y.begin[p]; i < y.begin[p + 1]; ++i) {
    if (y.taps[i].at < first || y.taps[i].at >= last) continue;
    T* line = window + (y.taps[i].at - first) * row;
    const T down = y.taps[i].weight * value;
    for (int32_t j = x.begin[q]; j < x.begin[q + 1]; ++j) line[x.taps[j].at * 16] += x.taps[j].weight * down;
  }
}
