// Register vectors for kernel bodies, compiled once per instruction set (cpu/foreach_isa.h): loads and stores, whole or
// of the first few lanes, conversion from and to the half types, an explicit fused multiply-add where the instruction
// set has one, exp. Arithmetic is the compiler's vector extension. A body includes this first, and its .cpp has
// included cpu/vec.h.

template <typename T, int lanes>
struct VecOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T))));
  typedef T loose __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <typename T, int lanes>
using Vec = typename VecOf<T, lanes>::type;

// f(0), ..., f(n - 1) with indices that are constants from the start, so that arrays of vectors that outlive a loop are
// kept in registers, which an unrolled loop does not achieve.
template <typename F, int... i>
__attribute__((always_inline)) inline void unrolled_over(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}
template <int n, typename F>
__attribute__((always_inline)) inline void unrolled(const F& f) {
  unrolled_over(f, std::make_integer_sequence<int, n>{});
}
// A lambda that is always inlined.
#define CVOPS_INLINED(...) [&](__VA_ARGS__) __attribute__((always_inline))

// Lanes of a full register.
template <typename T>
inline constexpr int full_lanes = CVOPS_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <typename T, int lanes>
inline Vec<T, lanes> splat(T value) {
  return value - Vec<T, lanes>{};
}

// a * b + c, in one rounding wherever CVOPS_HAS_FMA.
template <typename T, int lanes>
inline Vec<T, lanes> fma_of(Vec<T, lanes> a, Vec<T, lanes> b, Vec<T, lanes> c) {
#if CVOPS_VECTOR_BYTES == 64
  if constexpr (sizeof(a) == 64) {
    if constexpr (sizeof(T) == 4)
      return (Vec<T, lanes>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    else
      return (Vec<T, lanes>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
#endif
#if defined(CVOPS_HAS_FMA)
  if constexpr (sizeof(a) == 32) {
    if constexpr (sizeof(T) == 4)
      return (Vec<T, lanes>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    else
      return (Vec<T, lanes>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  } else if constexpr (sizeof(a) == 16) {
    if constexpr (sizeof(T) == 4)
      return (Vec<T, lanes>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c);
    else
      return (Vec<T, lanes>)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c);
  }
#endif
  return a * b + c;
}

template <typename T, int lanes>
inline Vec<T, lanes> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T, lanes>::loose*>(p);
}

template <typename T, int lanes>
inline void store(T* p, Vec<T, lanes> v) {
  *reinterpret_cast<typename VecOf<T, lanes>::loose*>(p) = v;
}

#if CVOPS_VECTOR_BYTES == 32
// 8 ones, then 8 zeros: the mask of the first n lanes starts at 8 - n.
alignas(64) constexpr int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
constexpr int32_t kLaneNumber[12] = {0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7};
inline __m256i lane_mask32(int64_t n) {
  return _mm256_loadu_si256((const __m256i*)(kLaneMask + 8 - n));
}
#endif

// The first n lanes from memory, 0 < n <= lanes, and zeros. Reads nothing past them.
template <typename T, int lanes>
inline Vec<T, lanes> load_first(const T* p, int64_t n) {
  typedef Vec<T, lanes> V;
  if (n >= lanes) return load<T, lanes>(p);
#if CVOPS_VECTOR_BYTES == 64
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4 && lanes == 16)
    return (V)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  else if constexpr (sizeof(T) == 4 && lanes == 8)
    return (V)_mm256_maskz_loadu_ps(static_cast<__mmask8>(mask), p);
  else if constexpr (sizeof(T) == 8 && lanes == 8)
    return (V)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
#elif CVOPS_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4 && lanes == 8) return (V)_mm256_maskload_ps(p, lane_mask32(n));
#endif
  V v{};
  for (int i = 0; i < lanes; ++i) {
    if (i < n) v[i] = p[i];
  }
  return v;
}

template <typename T, int lanes>
inline void store_first(T* p, Vec<T, lanes> v, int64_t n) {
  if (n >= lanes) return store<T, lanes>(p, v);
#if CVOPS_VECTOR_BYTES == 64
  const unsigned mask = (1u << n) - 1;
  if constexpr (sizeof(T) == 4 && lanes == 16)
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)v);
  else if constexpr (sizeof(T) == 4 && lanes == 8)
    return _mm256_mask_storeu_ps(p, static_cast<__mmask8>(mask), (__m256)v);
  else if constexpr (sizeof(T) == 8 && lanes == 8)
    return _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask), (__m512d)v);
#elif CVOPS_VECTOR_BYTES == 32
  // Two overlapping stores: AMD's masked stores are microcode.
  if constexpr (sizeof(T) == 4 && lanes == 8) {
    if (n >= 4) {
      store<T, 4>(p, (Vec<T, 4>)_mm256_castps256_ps128((__m256)v));
      const __m256i last = _mm256_loadu_si256((const __m256i*)(kLaneNumber + n - 4));
      return store<T, 4>(p + n - 4, (Vec<T, 4>)_mm256_castps256_ps128(_mm256_permutevar8x32_ps((__m256)v, last)));
    }
  }
#endif
  for (int i = 0; i < lanes; ++i) {
    if (i < n) p[i] = v[i];
  }
}

#if CVOPS_VECTOR_BYTES >= 32
#define CVOPS_HAS_LANE_MASKS 1

// Lanes low <= i < high of a float vector; bounds may lie outside of it.
#if CVOPS_VECTOR_BYTES == 64
template <int lanes>
struct LaneMaskOf {
  typedef std::conditional_t<lanes == 16, __mmask16, __mmask8> type;
};
template <int lanes>
inline typename LaneMaskOf<lanes>::type lanes_between(int64_t low, int64_t high) {
  const unsigned until = high <= 0 ? 0u : high >= lanes ? (1u << lanes) - 1 : (1u << high) - 1;
  const unsigned before = low <= 0 ? 0u : low >= lanes ? (1u << lanes) - 1 : (1u << low) - 1;
  return static_cast<typename LaneMaskOf<lanes>::type>(until & ~before);
}
template <int lanes>
inline Vec<float, lanes> load_masked(const float* p, typename LaneMaskOf<lanes>::type mask) {
  if constexpr (lanes == 16)
    return (Vec<float, lanes>)_mm512_maskz_loadu_ps(mask, p);
  else
    return (Vec<float, lanes>)_mm256_maskz_loadu_ps(mask, p);
}
// Those lanes of v that the mask has, and zeros. By an `and`, so that the load of v does not become a masked one.
template <int lanes>
inline Vec<float, lanes> keep_lanes(Vec<float, lanes> v, typename LaneMaskOf<lanes>::type mask) {
  if constexpr (lanes == 16)
    return (Vec<float, lanes>)((__m512i)v & _mm512_movm_epi32(mask));
  else
    return (Vec<float, lanes>)((__m256i)v & _mm256_movm_epi32(mask));
}
#else
template <int lanes>
struct LaneMaskOf {
  typedef Vec<int32_t, lanes> type;
};
template <int lanes>
inline Vec<int32_t, lanes> lanes_between(int64_t low, int64_t high) {
  const int32_t from = static_cast<int32_t>(low < 0 ? 0 : low > lanes ? lanes : low);
  const int32_t to = static_cast<int32_t>(high < 0 ? 0 : high > lanes ? lanes : high);
  Vec<int32_t, lanes> number;
  for (int i = 0; i < lanes; ++i) number[i] = i;
  return (number >= from) & (number < to);
}
template <int lanes>
inline Vec<float, lanes> load_masked(const float* p, Vec<int32_t, lanes> mask) {
  if constexpr (lanes == 8)
    return (Vec<float, lanes>)_mm256_maskload_ps(p, (__m256i)mask);
  else
    return (Vec<float, lanes>)_mm_maskload_ps(p, (__m128i)mask);
}
template <int lanes>
inline Vec<float, lanes> keep_lanes(Vec<float, lanes> v, Vec<int32_t, lanes> mask) {
  return (Vec<float, lanes>)((Vec<int32_t, lanes>)v & mask);
}
#endif
template <int lanes>
using LaneMask = typename LaneMaskOf<lanes>::type;

// Of a and b in a row: every second lane, from the first or from the second; and the reverse, a and b alternating. With
// AVX2, swapping halves and shuffling within them is quicker than the compiler's permutations.
#if CVOPS_VECTOR_BYTES == 32
inline __m256 low_halves(__m256 a, __m256 b) {
  return _mm256_permute2f128_ps(a, b, 0x20);
}
inline __m256 high_halves(__m256 a, __m256 b) {
  return _mm256_permute2f128_ps(a, b, 0x31);
}
#endif
template <int lanes>
inline Vec<float, lanes> even_lanes(Vec<float, lanes> a, Vec<float, lanes> b) {
#if CVOPS_VECTOR_BYTES == 32
  if constexpr (lanes == 8)
    return (Vec<float, 8>)_mm256_shuffle_ps(low_halves((__m256)a, (__m256)b), high_halves((__m256)a, (__m256)b), 0x88);
#endif
  if constexpr (lanes == 16)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  else
    return __builtin_shufflevector(a, b, 0, 2, 4, 6);
}
template <int lanes>
inline Vec<float, lanes> odd_lanes(Vec<float, lanes> a, Vec<float, lanes> b) {
#if CVOPS_VECTOR_BYTES == 32
  if constexpr (lanes == 8)
    return (Vec<float, 8>)_mm256_shuffle_ps(low_halves((__m256)a, (__m256)b), high_halves((__m256)a, (__m256)b), 0xdd);
#endif
  if constexpr (lanes == 16)
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  else
    return __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
template <int lanes>
inline Vec<float, lanes> interleaved_low(Vec<float, lanes> a, Vec<float, lanes> b) {
#if CVOPS_VECTOR_BYTES == 32
  if constexpr (lanes == 8)
    return (Vec<float, 8>)low_halves(
        _mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b));
#endif
  if constexpr (lanes == 16)
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
template <int lanes>
inline Vec<float, lanes> interleaved_high(Vec<float, lanes> a, Vec<float, lanes> b) {
#if CVOPS_VECTOR_BYTES == 32
  if constexpr (lanes == 8)
    return (Vec<float, 8>)high_halves(
        _mm256_unpacklo_ps((__m256)a, (__m256)b), _mm256_unpackhi_ps((__m256)a, (__m256)b));
#endif
  if constexpr (lanes == 16)
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  else if constexpr (lanes == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// The same from and to a storage type S: conversion to T = float if S is a half type, nothing otherwise.
template <typename T, int lanes, typename S>
inline Vec<T, lanes> load_as(const S* p) {
  if constexpr (std::is_same_v<S, T>) {
    return load<T, lanes>(p);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    const auto bits = load<uint16_t, lanes>(reinterpret_cast<const uint16_t*>(p));
    return (Vec<float, lanes>)(__builtin_convertvector(bits, Vec<uint32_t, lanes>) << 16);
  } else {
#if CVOPS_VECTOR_BYTES == 64
    if constexpr (lanes == 16)
      return (Vec<T, lanes>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
#endif
#if CVOPS_VECTOR_BYTES >= 32
    if constexpr (lanes == 8) return (Vec<T, lanes>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    if constexpr (lanes == 4) return (Vec<T, lanes>)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p));
#endif
    Vec<T, lanes> v{};
    for (int i = 0; i < lanes; ++i) v[i] = half_to_float(reinterpret_cast<const uint16_t*>(p)[i]);
    return v;
  }
}

template <typename T, int lanes, typename S>
inline void store_as(S* p, Vec<T, lanes> v) {
  if constexpr (std::is_same_v<S, T>) {
    store<T, lanes>(p, v);
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    // To nearest, ties to even; NaN stays NaN.
    const auto bits = (Vec<uint32_t, lanes>)v;
    const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const auto kept = v == v ? rounded : Vec<uint32_t, lanes>{} + 0x7fc0u;
    store<uint16_t, lanes>(reinterpret_cast<uint16_t*>(p), __builtin_convertvector(kept, Vec<uint16_t, lanes>));
  } else {
#if CVOPS_VECTOR_BYTES == 64
    if constexpr (lanes == 16) return _mm256_storeu_si256((__m256i*)p, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, 0));
#endif
#if CVOPS_VECTOR_BYTES >= 32
    if constexpr (lanes == 8) return _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, 0));
    if constexpr (lanes == 4) return _mm_storel_epi64((__m128i*)p, _mm_cvtps_ph((__m128)v, 0));
#endif
    for (int i = 0; i < lanes; ++i) reinterpret_cast<uint16_t*>(p)[i] = float_to_half(v[i]);
  }
}

// to[0, n) = from[0, n), converted. `spill` lets it write zeros up to a vector past the end, which is faster.
template <typename T, bool spill, typename S>
inline void convert_row(T* to, const S* from, int64_t n) {
  constexpr int lanes = full_lanes<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store<T, lanes>(to + i, load_as<T, lanes>(from + i));
  if (i == n) return;
  if constexpr (std::is_same_v<S, T>) {
    const auto v = load_first<T, lanes>(from + i, n - i);
    if constexpr (spill)
      store<T, lanes>(to + i, v);
    else
      store_first<T, lanes>(to + i, v, n - i);
  } else {
    S rest[lanes] = {};
    for (int k = 0; k < n - i; ++k) rest[k] = from[i + k];
    const auto v = load_as<T, lanes>(static_cast<const S*>(rest));
    if constexpr (spill)
      store<T, lanes>(to + i, v);
    else
      store_first<T, lanes>(to + i, v, n - i);
  }
}

// to[0, n) = from[0, n), rounded to the storage type.
template <typename T, typename S>
inline void round_row(S* to, const T* from, int64_t n) {
  constexpr int lanes = full_lanes<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store_as<T, lanes>(to + i, load<T, lanes>(from + i));
  if (i == n) return;
  S rest[lanes];
  store_as<T, lanes>(static_cast<S*>(rest), load_first<T, lanes>(from + i, n - i));
  for (int k = 0; k < n - i; ++k) to[i + k] = rest[k];
}

// Whether a comparison of vectors holds in any lane.
template <typename M>
inline bool any_lane(M mask) {
#if CVOPS_VECTOR_BYTES == 64
  if constexpr (sizeof(M) == 64) return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif CVOPS_VECTOR_BYTES == 32
  if constexpr (sizeof(M) == 32) return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#endif
  const auto words = (Vec<int64_t, sizeof(M) / 8>)mask;
  int64_t any = 0;
  for (size_t i = 0; i < sizeof(M) / 8; ++i) any |= words[i];
  return any != 0;
}

// join(first half, second half), of that the same, down to one number. `join` takes vectors of any size, and numbers.
template <typename T, int lanes, int first, int... i>
inline Vec<T, sizeof...(i)> lanes_from(Vec<T, lanes> v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (first + i)...);
}
template <typename T, int lanes, typename Join>
inline T folded(Vec<T, lanes> v, const Join& join) {
  if constexpr (lanes == 2) {
    return join(v[0], v[1]);
  } else {
    constexpr int half = lanes / 2;
    constexpr std::make_integer_sequence<int, half> all{};
    return folded<T, half>(join(lanes_from<T, lanes, 0>(v, all), lanes_from<T, lanes, half>(v, all)), join);
  }
}

template <typename T, int lanes>
inline T sum_lanes(Vec<T, lanes> v) {
  return folded<T, lanes>(v, [](auto a, auto b) { return a + b; });
}

// exp: x = n ln 2 + r, |r| <= ln(2) / 2, Taylor in r; within about two units in the last place. Above 88.3 (709.3 for
// double) it is infinite, below minus that it stays at its value there.
template <typename T, int lanes>
inline Vec<T, lanes> exp_of(Vec<T, lanes> x) {
  typedef Vec<T, lanes> V;
  constexpr bool single = sizeof(T) == 4;
  typedef std::conditional_t<single, int32_t, int64_t> I;
  constexpr int degree = single ? 7 : 13, mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
  constexpr T low = single ? T(-87.3) : T(-708.3), high = single ? T(88.3) : T(709.3);
  constexpr T ln2_high = single ? T(0.693359375) : T(6.93145751953125e-1);
  constexpr T ln2_low = single ? T(-2.12194440e-4) : T(1.42860682030941723212e-6);
  constexpr T magic = single ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa: adding it rounds
  const V bounded = x < low ? splat<T, lanes>(low) : x > high ? splat<T, lanes>(high) : x;
  const V shifted = fma_of<T, lanes>(bounded, splat<T, lanes>(T(1.44269504088896340736)), splat<T, lanes>(magic));
  const V n = shifted - magic;
  const V r = fma_of<T, lanes>(n, splat<T, lanes>(-ln2_low), fma_of<T, lanes>(n, splat<T, lanes>(-ln2_high), bounded));
  T inverse[degree + 1] = {1};
  for (int k = 1; k <= degree; ++k) inverse[k] = inverse[k - 1] / T(k);
  V sum = splat<T, lanes>(inverse[degree]);
  for (int k = degree - 1; k >= 0; --k) sum = fma_of<T, lanes>(sum, r, splat<T, lanes>(inverse[k]));
  typedef Vec<I, lanes> VI;
  const VI exponent = __builtin_convertvector(n, VI) + bias;
  const V infinity = splat<T, lanes>(static_cast<T>(__builtin_inf()));
  return x > high ? infinity : sum * (V)(exponent << mantissa);
}
