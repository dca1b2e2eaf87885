// Windows: a rectangle of a map, 16 channels of it, stored with the channels inside, so that NCHW maps are worked on
// with the loops of channels_last ones. Included by the bodies of the RoI ops. Missing channels of a window are zero.

#include "cpu/transpose-inl.h"

// to[n][channels] = from[n][16], rows of `to` `pitch` apart.
template <bool saturate, typename T, typename S>
void copy_window(const T* from, int64_t channels, int64_t n, S* to, int64_t pitch) {
  constexpr int lanes = full_lanes<T>;
  for (int64_t x = 0; x < n; ++x) {
    int64_t i = 0;
    for (; i + lanes <= channels; i += lanes) {
      store_gradient<saturate, T, lanes>(to + x * pitch + i, load<T, lanes>(from + x * 16 + i));
    }
    for (; i < channels; ++i) store_one<saturate>(to + x * pitch + i, from[x * 16 + i]);
  }
}
