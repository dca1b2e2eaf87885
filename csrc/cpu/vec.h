// What cpu/vec-inl.h needs from headers. A .cpp includes it before cpu/foreach_isa.h opens its namespaces.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>
#include <utility>

namespace cvops {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Where no instruction converts halves; outside of the instruction-set regions.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace cvops
