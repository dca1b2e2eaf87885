// Loop bodies of mask_paste, compiled once per instruction set (cpu/foreach_isa.h). Plain IEEE arithmetic: the same
// bits on every instruction set.

#include "cpu/vec-inl.h"

// to[x] = the row of cells at the columns of the taps. `cells` has a zero before its first and after its last value.
template <typename T>
void paste_columns(const T* cells, const PasteTaps<T>& taps, T* __restrict to) {
  const int32_t* low = taps.low;
  const T* weight = taps.weight;
  for (int64_t x = 0; x < taps.count; ++x) to[x] = paste_between(cells[low[x] + 1], cells[low[x] + 2], weight[x]);
}

// A row of the image between two rows that paste_columns made.
template <typename T, typename S>
void paste_row(const T* __restrict above, const T* __restrict below, T weight, int64_t n, T* __restrict tile, S* to) {
  for (int64_t x = 0; x < n; ++x) tile[x] = paste_between(above[x], below[x], weight);
  round_row(to, static_cast<const T*>(tile), n);
}

template <typename T>
void paste_row_binary(
    const T* __restrict above, const T* __restrict below, T weight, int64_t n, T threshold, uint8_t* __restrict to) {
  for (int64_t x = 0; x < n; ++x) to[x] = paste_between(above[x], below[x], weight) >= threshold ? 1 : 0;
}

// The transpose of paste_row: above, below += the gradient of the row, weighted.
template <typename T, typename S>
void unpaste_row(const S* from, T weight, int64_t n, T* __restrict tile, T* __restrict above, T* __restrict below) {
  convert_row<T, false>(tile, from, n);
  for (int64_t x = 0; x < n; ++x) {
    above[x] += (T(1) - weight) * tile[x];
    below[x] += weight * tile[x];
  }
}

// The transpose of paste_columns; `cells` as there.
template <typename T>
void unpaste_columns(const T* from, const PasteTaps<T>& taps, T* cells) {
  for (int64_t x = 0; x < taps.count; ++x) {
    cells[taps.low[x] + 1] += (T(1) - taps.weight[x]) * from[x];
    cells[taps.low[x] + 2] += taps.weight[x] * from[x];
  }
}
