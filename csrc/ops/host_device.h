// HOST_DEVICE, the mark of geometry that the CPU and CUDA backends share, and arithmetic that rounds once per operation
// on both of them. The geometry itself is in the header of each op.
#pragma once

// Always inlined on the host, so that a loop compiled for AVX-512 gets an AVX-512 copy of the geometry and no shared
// copy is left for the linker to choose from.
#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE __attribute__((always_inline)) inline
#endif

namespace cvops {

template <typename T>
HOST_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
HOST_DEVICE T smaller(T a, T b) {
  return a < b ? a : b;
}

// nvcc may contract a * b + c into one rounding; g++ runs with -ffp-contract=off. Where a comparison decides a result
// (an NMS threshold, a grid size) the two must agree to the last bit, so such expressions are written with these.
#if defined(__CUDA_ARCH__)
HOST_DEVICE float add_rn(float a, float b) {
  return __fadd_rn(a, b);
}
HOST_DEVICE float sub_rn(float a, float b) {
  return __fsub_rn(a, b);
}
HOST_DEVICE float mul_rn(float a, float b) {
  return __fmul_rn(a, b);
}
HOST_DEVICE float div_rn(float a, float b) {
  return __fdiv_rn(a, b);
}
HOST_DEVICE double add_rn(double a, double b) {
  return __dadd_rn(a, b);
}
HOST_DEVICE double sub_rn(double a, double b) {
  return __dsub_rn(a, b);
}
HOST_DEVICE double mul_rn(double a, double b) {
  return __dmul_rn(a, b);
}
HOST_DEVICE double div_rn(double a, double b) {
  return __ddiv_rn(a, b);
}
#else
template <typename T>
HOST_DEVICE T add_rn(T a, T b) {
  return a + b;
}
template <typename T>
HOST_DEVICE T sub_rn(T a, T b) {
  return a - b;
}
template <typename T>
HOST_DEVICE T mul_rn(T a, T b) {
  return a * b;
}
template <typename T>
HOST_DEVICE T div_rn(T a, T b) {
  return a / b;
}
#endif

}  // namespace cvops
