// exp, log and log1p for one lane of a loop: branch-free in float32, so that a loop over them vectorises, and written
// without fused multiply-adds, so that every instruction set and CUDA (-fmad=false) get the same bits. float64 calls
// the C library. The float32 errors are measured in docs/numerics.md and tested through the ops.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "ops/host_device.h"

namespace cvops {

// The bits of a number as another type of the same size.
template <typename To, typename From>
HOST_DEVICE To bits_as(From from) {
#if defined(__CUDACC__)
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
#else
  return __builtin_bit_cast(To, from);
#endif
}

// A choice by the sign bit of x, without a branch that a compiler might merge with others.
template <typename T>
HOST_DEVICE T if_negative(T x, T then, T otherwise) {
  using I = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const I mask = bits_as<I>(x) >> (8 * sizeof(T) - 1);
  return bits_as<T>((bits_as<I>(then) & mask) | (bits_as<I>(otherwise) & ~mask));
}

// -|x|, also of a NaN.
template <typename T>
HOST_DEVICE T minus_size(T x) {
  using I = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  return bits_as<T>(bits_as<I>(x) | std::numeric_limits<I>::min());
}

// Polynomials here are evaluated in pairs of terms (Estrin's scheme), not one term after the other: a loop over lanes
// waits for the chain of results, not for the number of operations.

// exp(y): y = n ln 2 + r with |r| <= ln(2) / 2, a polynomial in r (coefficients of Cephes' expf, S. Moshier,
// netlib.org/cephes), within 2 units in the last place. Below -87.3 it is 0, above 88 infinite; `not_above_zero`
// promises that y is not there.
template <bool not_above_zero = false, typename T>
HOST_DEVICE T exp_lane(T y) {
  if constexpr (sizeof(T) == 8) {
    return exp(y);
  } else {
    constexpr T low = T(-87.3), high = T(88);
    const T raised = y < low ? low : y;
    const T bounded = !not_above_zero && raised > high ? high : raised;
    const T shifted = bounded * T(1.44269504088896341) + T(12582912);  // 1.5 * 2^23: the sum is rounded to an integer
    const T n = shifted - T(12582912);
    const T r = bounded - n * T(0.693359375) + n * T(2.12194440e-4);
    const T square = r * r;
    const T fifth = T(1.9875691500e-4) * r + T(1.3981999507e-3), third = T(8.3334519073e-3) * r + T(4.1665795894e-2);
    const T first = T(1.6666665459e-1) * r + T(5.0000001201e-1);
    const T sum = ((fifth * square + third) * square + first) * square + r + T(1);
    // The low bits of `shifted` hold n.
    const uint32_t power = (bits_as<uint32_t>(shifted) + 127u) << 23;
    const T value = sum * bits_as<T>(power);
    const T floored = y < low ? T(0) : value;
    return !not_above_zero && y > high ? T(HUGE_VALF) : floored;
  }
}

// atanh(s) / s - 1 = s^2 / 3 + s^4 / 5 + ... for z = s^2 <= 1/9, minimax, within 2e-9.
HOST_DEVICE float atanh_tail(float z) {
  return ((0.134257490341f * z + 0.141183098983f) * (z * z) + (0.200037803227f * z + 0.333333201683f)) * z;
}

// log(y) of a positive normal number, within 3 units in the last place; anything finite for others.
template <typename T>
HOST_DEVICE T log_lane(T y) {
  if constexpr (sizeof(T) == 8) {
    return log(y);
  } else {
    // y = 2^n f with f in [sqrt(1/2), sqrt(2)), log f = 2 atanh((f - 1) / (f + 1)).
    constexpr int32_t root_half = 0x3f3504f3;
    const int32_t offset = bits_as<int32_t>(y) - root_half;
    const T n = static_cast<T>(offset >> 23);
    const T f = bits_as<T>((offset & 0x7fffff) + root_half);
    const T s = (f - T(1)) / (f + T(1)), twice = s + s;
    return n * T(-2.12194440e-4) + twice * atanh_tail(s * s) + twice + n * T(0.693359375);
  }
}

// log(1 + y) for y >= 0, exact for small y to the same error.
template <typename T>
HOST_DEVICE T log1p_lane(T y) {
  if constexpr (sizeof(T) == 8) {
    return log1p(y);
  } else {
    const T k = T(1) + y;
    return log_lane(k) + (y - (k - T(1))) / k;
  }
}

}  // namespace cvops
