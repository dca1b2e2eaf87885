// Rows to columns and back, 16 rows at a time, with conversion from and to the storage type: what lets loops over
// contiguous lanes work along a contiguous axis. Included by bodies (cpu/foreach_isa.h). Missing rows are zero.

#include "cpu/vec-inl.h"

template <typename T, typename S>
inline T load_one(const S* from) {
  return load_as<T, 1>(from)[0];
}

// `saturate`: a gradient that is too large for a float16 stays finite.
template <bool saturate, typename T, int lanes, typename S>
inline void store_gradient(S* to, Vec<T, lanes> value) {
  if constexpr (saturate && std::is_same_v<S, Half>) {
    const Vec<T, lanes> most = splat<T, lanes>(T(65504));
    value = value > most ? most : value < -most ? -most : value;
  }
  store_as<T, lanes>(to, value);
}

template <bool saturate, typename T, typename S>
inline void store_one(S* to, T value) {
  store_gradient<saturate, T, 1>(to, splat<T, 1>(value));
}

// 8 x 8 values, rows to columns, in three rounds that each interleave row i with row i + 4.
template <typename T>
inline void transpose8(Vec<T, 8>* v) {
  for (int round = 0; round < 3; ++round) {
    Vec<T, 8> to[8];
    unrolled<4>(CVOPS_INLINED(auto i) {
      to[2 * i] = __builtin_shufflevector(v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      to[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    });
    unrolled<8>(CVOPS_INLINED(auto i) { v[i] = to[i]; });
  }
}

// to[n][16] = from[channels][n], channel rows `pitch` apart.
template <typename T, typename S>
void pack_window(const S* from, int64_t pitch, int64_t channels, int64_t n, T* to) {
  for (int64_t c = 0; c < 16; c += 8) {
    int64_t x = 0;
    if (sizeof(T) == 4 && channels - c >= 8) {
      for (; x + 8 <= n; x += 8) {
        Vec<T, 8> v[8];
        unrolled<8>(CVOPS_INLINED(auto i) { v[i] = load_as<T, 8>(from + (c + i) * pitch + x); });
        transpose8<T>(v);
        unrolled<8>(CVOPS_INLINED(auto i) { store<T, 8>(to + (x + i) * 16 + c, v[i]); });
      }
    }
    for (; x < n; ++x) {
      for (int64_t i = c; i < c + 8; ++i) {
        to[x * 16 + i] = i < channels ? load_one<T>(from + i * pitch + x) : T(0);
      }
    }
  }
}

// to[channels][n] = from[n][16].
template <bool saturate, typename T, typename S>
void unpack_window(const T* from, int64_t channels, int64_t n, S* to, int64_t pitch) {
  for (int64_t c = 0; c < channels; c += 8) {
    const int64_t some = channels - c < 8 ? channels - c : 8;
    int64_t x = 0;
    if (sizeof(T) == 4 && some == 8) {
      for (; x + 8 <= n; x += 8) {
        Vec<T, 8> v[8];
        unrolled<8>(CVOPS_INLINED(auto i) { v[i] = load<T, 8>(from + (x + i) * 16 + c); });
        transpose8<T>(v);
        unrolled<8>(CVOPS_INLINED(auto i) { store_gradient<saturate, T, 8>(to + (c + i) * pitch + x, v[i]); });
      }
    }
    for (int64_t i = c; i < c + some; ++i) {
      for (int64_t k = x; k < n; ++k) store_one<saturate>(to + i * pitch + k, from[k * 16 + i]);
    }
  }
}
