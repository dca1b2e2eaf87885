// CUDA's vector types, intrinsics and atomics as plain C++. Threads of the shim never run at the same moment, so an
// atomic is an ordinary read and write. Barriers and shuffles, which need the scheduler, are in cuda_on_host.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

// --- Vector types, with CUDA's alignments ---

#define CUDA_ON_HOST_VECTORS(type, name, align2, align4)          \
  struct name##1 {                                                \
    type x;                                                       \
  };                                                              \
  struct alignas(align2) name##2 {                                \
    type x, y;                                                    \
  };                                                              \
  struct name##3 {                                                \
    type x, y, z;                                                 \
  };                                                              \
  struct alignas(align4) name##4 {                                \
    type x, y, z, w;                                              \
  };                                                              \
  inline name##1 make_##name##1(type x) {                         \
    return {x};                                                   \
  }                                                               \
  inline name##2 make_##name##2(type x, type y) {                 \
    return {x, y};                                                \
  }                                                               \
  inline name##3 make_##name##3(type x, type y, type z) {         \
    return {x, y, z};                                             \
  }                                                               \
  inline name##4 make_##name##4(type x, type y, type z, type w) { \
    return {x, y, z, w};                                          \
  }

CUDA_ON_HOST_VECTORS(signed char, char, 2, 4)
CUDA_ON_HOST_VECTORS(unsigned char, uchar, 2, 4)
CUDA_ON_HOST_VECTORS(short, short, 4, 8)
CUDA_ON_HOST_VECTORS(unsigned short, ushort, 4, 8)
CUDA_ON_HOST_VECTORS(int, int, 8, 16)
CUDA_ON_HOST_VECTORS(unsigned, uint, 8, 16)
CUDA_ON_HOST_VECTORS(float, float, 8, 16)
CUDA_ON_HOST_VECTORS(long long, longlong, 16, 16)
CUDA_ON_HOST_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDA_ON_HOST_VECTORS(double, double, 16, 16)
#undef CUDA_ON_HOST_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- Integer intrinsics ---

inline int __popc(unsigned value) {
  return std::popcount(value);
}
inline int __popcll(unsigned long long value) {
  return std::popcount(value);
}
inline int __clz(int value) {
  return std::countl_zero(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return std::countl_zero(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) {
  return __builtin_ffs(value);
}
inline int __ffsll(long long value) {
  return __builtin_ffsll(value);
}
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (value >> bit & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>((static_cast<int64_t>(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// --- Floating point: one rounding per operation; the shim is compiled with -ffp-contract=off ---

inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __dsqrt_rn(double a) {
  return std::sqrt(a);
}
inline float __expf(float a) {
  return std::exp(a);
}
inline float __logf(float a) {
  return std::log(a);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __saturatef(float a) {
  return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f;
}
inline float rsqrtf(float a) {
  return 1.0f / std::sqrt(a);
}
inline double rsqrt(double a) {
  return 1.0 / std::sqrt(a);
}

inline int __float_as_int(float a) {
  return std::bit_cast<int>(a);
}
inline unsigned __float_as_uint(float a) {
  return std::bit_cast<unsigned>(a);
}
inline float __int_as_float(int a) {
  return std::bit_cast<float>(a);
}
inline float __uint_as_float(unsigned a) {
  return std::bit_cast<float>(a);
}
inline long long __double_as_longlong(double a) {
  return std::bit_cast<long long>(a);
}
inline double __longlong_as_double(long long a) {
  return std::bit_cast<double>(a);
}

// CUDA has min and max at global scope for numbers.
using std::max;
using std::min;

// --- Loads and stores with cache hints ---

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return *from;
}
template <typename T>
T __ldcg(const T* from) {
  return *from;
}
template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}

// --- Atomics: each returns the old value. std::type_identity keeps CUDA's rule that the pointer fixes the type ---

template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = value;
  return old;
}
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, static_cast<T>(*at + value));
}
template <typename T>
T atomicSub(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, static_cast<T>(*at - value));
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, std::min(*at, value));
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, std::max(*at, value));
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, static_cast<T>(*at & value));
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, static_cast<T>(*at | value));
}
template <typename T>
T atomicXor(T* at, std::type_identity_t<T> value) {
  return atomicExch(at, static_cast<T>(*at ^ value));
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *at;
  if (std::memcmp(&old, &expected, sizeof(T)) == 0) *at = value;
  return old;
}
