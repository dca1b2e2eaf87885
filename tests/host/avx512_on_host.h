// The AVX-512 intrinsics that csrc/cpu calls, for a machine that has AVX2 only. Included before everything else
// (tests/host/host_library.py), together with a foreach_isa.h whose avx512 region is compiled for AVX2, so that the
// kernels of 64-byte vectors can be tested there. What is not here does not compile.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define __builtin_cpu_supports(feature) true

#define CVOPS_ON_HOST __attribute__((always_inline, target("avx2,fma,f16c"))) inline

namespace cvops_avx512_on_host {

template <typename Half>
struct Halves {
  Half low, high;
};
template <typename Half, typename Whole>
CVOPS_ON_HOST Halves<Half> split(Whole v) {
  return __builtin_bit_cast(Halves<Half>, v);
}
template <typename Whole, typename Half>
CVOPS_ON_HOST Whole join(Half low, Half high) {
  return __builtin_bit_cast(Whole, Halves<Half>{low, high});
}

CVOPS_ON_HOST __m512 fmadd(__m512 a, __m512 b, __m512 c) {
  const auto x = split<__m256>(a), y = split<__m256>(b), z = split<__m256>(c);
  return join<__m512>(_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high));
}
CVOPS_ON_HOST __m512d fmadd(__m512d a, __m512d b, __m512d c) {
  const auto x = split<__m256d>(a), y = split<__m256d>(b), z = split<__m256d>(c);
  return join<__m512d>(_mm256_fmadd_pd(x.low, y.low, z.low), _mm256_fmadd_pd(x.high, y.high, z.high));
}

// Lanes that the mask lacks are neither read nor written.
template <typename V, typename T>
CVOPS_ON_HOST V load(uint32_t mask, const T* from) {
  V v{};
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) {
    if (mask >> i & 1) v[i] = from[i];
  }
  return v;
}
template <typename V, typename T>
CVOPS_ON_HOST void store(T* to, uint32_t mask, V v) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) {
    if (mask >> i & 1) to[i] = v[i];
  }
}

CVOPS_ON_HOST __m512 from_halves(__m256i bits) {
  const auto half = split<__m128i>(bits);
  return join<__m512>(_mm256_cvtph_ps(half.low), _mm256_cvtph_ps(half.high));
}
CVOPS_ON_HOST __m256i to_halves(__m512 v) {
  const auto half = split<__m256>(v);
  return join<__m256i>(_mm256_cvtps_ph(half.low, 0), _mm256_cvtps_ph(half.high, 0));
}

CVOPS_ON_HOST __m512i multiply_low(__m512i a, __m512i b) {
  const auto x = split<__m256i>(a), y = split<__m256i>(b);
  return join<__m512i>(_mm256_mul_epu32(x.low, y.low), _mm256_mul_epu32(x.high, y.high));
}

// Bit i: lane i of a comparison is true.
template <typename V>
CVOPS_ON_HOST uint32_t mask_of(V truth) {
  uint32_t mask = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(truth[0]); ++i) mask |= static_cast<uint32_t>(truth[i] & 1) << i;
  return mask;
}
template <int predicate, typename V>
CVOPS_ON_HOST uint32_t lanes_above(V a, V b) {
  static_assert(predicate == _CMP_GT_OQ);
  return mask_of(a > b);
}
typedef uint16_t Words __attribute__((vector_size(64)));
CVOPS_ON_HOST uint32_t words_below(__m512i a, __m512i b) {
  return mask_of((Words)a < (Words)b);
}
CVOPS_ON_HOST uint32_t words_equal(__m512i a, __m512i b) {
  return mask_of((Words)a == (Words)b);
}
CVOPS_ON_HOST __m512i splat_words(int16_t value) {
  return (__m512i)(static_cast<uint16_t>(value) - Words{});
}
CVOPS_ON_HOST __m512i load_whole(const void* from) {
  __m512i v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

}  // namespace cvops_avx512_on_host

#undef _mm512_cmp_ps_mask
#undef _mm512_cmp_pd_mask
#undef _mm512_maskz_cvtps_ph
#define _mm512_fmadd_ps cvops_avx512_on_host::fmadd
#define _mm512_fmadd_pd cvops_avx512_on_host::fmadd
#define _mm512_maskz_loadu_ps cvops_avx512_on_host::load<__m512>
#define _mm512_maskz_loadu_pd cvops_avx512_on_host::load<__m512d>
#define _mm256_maskz_loadu_ps cvops_avx512_on_host::load<__m256>
#define _mm512_mask_storeu_ps cvops_avx512_on_host::store<__m512>
#define _mm512_mask_storeu_pd cvops_avx512_on_host::store<__m512d>
#define _mm256_mask_storeu_ps cvops_avx512_on_host::store<__m256>
#define _mm512_maskz_cvtph_ps(mask, bits) cvops_avx512_on_host::from_halves(bits)
#define _mm512_maskz_cvtps_ph(mask, v, rounding) cvops_avx512_on_host::to_halves(v)
#define _mm512_maskz_mul_epu32(mask, a, b) cvops_avx512_on_host::multiply_low(a, b)
#define _mm512_cmp_ps_mask(a, b, predicate) cvops_avx512_on_host::lanes_above<predicate>(a, b)
#define _mm512_cmp_pd_mask(a, b, predicate) cvops_avx512_on_host::lanes_above<predicate>(a, b)
#define _mm512_cmplt_epu16_mask cvops_avx512_on_host::words_below
#define _mm512_cmpeq_epu16_mask cvops_avx512_on_host::words_equal
#define _mm512_loadu_si512 cvops_avx512_on_host::load_whole
#define _mm512_set1_epi16 cvops_avx512_on_host::splat_words
