// Compiles a kernel body once per instruction set. A .cpp says
//
//     #define CVOPS_BODY "cpu/box_iou-inl.h"
//     #include "cpu/foreach_isa.h"
//     ...
//     CVOPS_CALL_ISA(box_iou_rows, <arguments>);
//
// and the body's functions exist in cvops::scalar, cvops::avx2 and cvops::avx512. The body includes nothing, because an
// inline function of a header compiled in here could be merged by the linker into baseline callers; what it needs is
// included before this file. "scalar" is the compiler's baseline: SSE2 on x86-64, NEON on arm64.
// Inside a body, CVOPS_VECTOR_BYTES is the register width of its instruction set.
// No include guard: one translation unit has one body.

#include "cpu/isa.h"

#define CVOPS_VECTOR_BYTES 16
namespace cvops::scalar {
namespace {
#include CVOPS_BODY
}
}  // namespace cvops::scalar
#undef CVOPS_VECTOR_BYTES

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define CVOPS_VECTOR_BYTES 32
#define CVOPS_HAS_FMA 1
namespace cvops::avx2 {
namespace {
#include CVOPS_BODY
}
}  // namespace cvops::avx2
#undef CVOPS_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define CVOPS_VECTOR_BYTES 64
namespace cvops::avx512 {
namespace {
#include CVOPS_BODY
}
}  // namespace cvops::avx512
#undef CVOPS_VECTOR_BYTES
#undef CVOPS_HAS_FMA
#pragma GCC pop_options

#define CVOPS_CALL_ISA(function, ...)           \
  do {                                          \
    switch (::cvops::active_isa()) {            \
      case ::cvops::Isa::avx512:                \
        ::cvops::avx512::function(__VA_ARGS__); \
        break;                                  \
      case ::cvops::Isa::avx2:                  \
        ::cvops::avx2::function(__VA_ARGS__);   \
        break;                                  \
      default:                                  \
        ::cvops::scalar::function(__VA_ARGS__); \
    }                                           \
  } while (0)

#else

#define CVOPS_CALL_ISA(function, ...) ::cvops::scalar::function(__VA_ARGS__)

#endif
