// What every op's entry point needs: the stable tensor, argument checks with plain messages, dtype dispatch.
// Kernels never include this; they take raw pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

// Argument checks live in _ops.so and are called by _ops_cuda.so too.
#define CVOPS_API __attribute__((visibility("default")))

namespace cvops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using IntList = std::vector<int64_t>;  // int[] of a schema

// Half types compute, and return derived quantities such as IoU, in float32.
template <typename T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// In the type that tensors of `type`, or of its own type, compute in, without gaps; the tensor itself where it is that
// already.
inline Tensor computed(const Tensor& tensor, ScalarType type,
    torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous) {
  return torch::stable::contiguous(torch::stable::to(tensor, compute_type(type)), format);
}
inline Tensor computed(
    const Tensor& tensor, torch::headeronly::MemoryFormat format = torch::headeronly::MemoryFormat::Contiguous) {
  return computed(tensor, tensor.scalar_type(), format);
}

// Conversion of a gradient to the dtype of its tensor. float16 saturates at its largest finite value: a steep but
// finite slope must not become an infinity that poisons the step.
template <typename To, typename From>
To saturate_cast(From value) {
  if constexpr (std::is_same_v<To, torch::headeronly::Half>) {
    constexpr From most = From(65504);
    value = value > most ? most : value < -most ? -most : value;
  }
  return static_cast<To>(value);
}

template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  throw std::runtime_error(text.str());
}

// "[2, 3, 4]", for messages.
inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

}  // namespace cvops

// CVOPS_CHECK(boxes.dim() == 2, "nms: boxes must be [N, 4], got ", shape_of(boxes));
#define CVOPS_CHECK(condition, ...) \
  do {                              \
    if (!(condition)) [[unlikely]]  \
      ::cvops::fail(__VA_ARGS__);   \
  } while (0)

// Runs the lambda with scalar_t = float, double, Half or BFloat16.
#define CVOPS_DISPATCH_FLOATS(TYPE, NAME, ...)                                                                \
  THO_DISPATCH_SWITCH(TYPE, NAME,                                                                             \
      THO_DISPATCH_CASE(::cvops::ScalarType::Float, __VA_ARGS__) THO_DISPATCH_CASE(                           \
          ::cvops::ScalarType::Double, __VA_ARGS__) THO_DISPATCH_CASE(::cvops::ScalarType::Half, __VA_ARGS__) \
          THO_DISPATCH_CASE(::cvops::ScalarType::BFloat16, __VA_ARGS__))

namespace cvops {

inline void check_floating(const char* op, const char* argument, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  CVOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                  type == ScalarType::BFloat16,
      op, ": ", argument, " must be float64, float32, float16 or bfloat16, got ", torch::headeronly::toString(type));
}

inline void check_same_kind(const char* op, const char* name_a, const Tensor& a, const char* name_b, const Tensor& b) {
  CVOPS_CHECK(a.scalar_type() == b.scalar_type(), op, ": ", name_a, " and ", name_b, " must have one dtype, got ",
      torch::headeronly::toString(a.scalar_type()), " and ", torch::headeronly::toString(b.scalar_type()));
  CVOPS_CHECK(a.device() == b.device(), op, ": ", name_a, " and ", name_b, " must be on one device");
}

}  // namespace cvops
