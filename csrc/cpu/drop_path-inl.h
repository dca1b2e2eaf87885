// Loop bodies of drop_path, compiled once per instruction set (cpu/foreach_isa.h). A factor of 0 writes 0, whatever the
// input holds; one multiplication otherwise, so every instruction set gives the same bits.

#include "cpu/vec-inl.h"

// Elements begin .. end - 1 of a tensor whose groups are `inner` elements in a row.
template <typename S, typename T>
void scale_groups(const S* in, const T* factors, int64_t inner, int64_t begin, int64_t end, S* out) {
  constexpr int lanes = full_lanes<T>;
  int64_t group = begin / inner;
  for (int64_t i = begin; i < end; ++group) {
    const int64_t until = (group + 1) * inner < end ? (group + 1) * inner : end;
    const T factor = factors[group];
    const bool dropped = factor == 0;
    const auto all = splat<T, lanes>(factor);
    // A dropped group gets its factor, which is 0; memset would be slower on planes of a few kilobytes.
    for (; i + lanes <= until; i += lanes) store_as<T, lanes>(out + i, dropped ? all : load_as<T, lanes>(in + i) * all);
    if (i == until) continue;
    S rest[lanes] = {};
    for (int k = 0; k < until - i; ++k) rest[k] = in[i + k];
    store_as<T, lanes>(static_cast<S*>(rest), dropped ? all : load_as<T, lanes>(static_cast<const S*>(rest)) * all);
    for (int k = 0; k < until - i; ++k) out[i + k] = rest[k];
    i = until;
  }
}

// Pixels begin .. end - 1 of a channels_last tensor with `pixels` of them per sample, one factor per channel.
template <typename S, typename T>
void scale_pixels(const S* in, const T* factors, int64_t channels, int64_t pixels, int64_t begin, int64_t end, S* out) {
  constexpr int lanes = full_lanes<T>;
  typedef Vec<T, lanes> V;
  const auto scaled = [](V v, V factor) { return factor == 0 ? V{} : v * factor; };
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const T* factor = factors + pixel / pixels * channels;
    const S* from = in + pixel * channels;
    S* to = out + pixel * channels;
    int64_t i = 0;
    for (; i + lanes <= channels; i += lanes) {
      store_as<T, lanes>(to + i, scaled(load_as<T, lanes>(from + i), load<T, lanes>(factor + i)));
    }
    if (i == channels) continue;
    S rest[lanes] = {};
    for (int k = 0; k < channels - i; ++k) rest[k] = from[i + k];
    store_as<T, lanes>(static_cast<S*>(rest),
        scaled(load_as<T, lanes>(static_cast<const S*>(rest)), load_first<T, lanes>(factor + i, channels - i)));
    for (int k = 0; k < channels - i; ++k) to[i + k] = rest[k];
  }
}
